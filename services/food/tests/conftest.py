"""Fixtures: the sample's file, its database, and a stub of a service on it."""

import csv

import pytest

from services.food import usda
from services.food.tests.sample import SAMPLED, load, serving


@pytest.fixture(scope="session")
def sample_file(tmp_path_factory):
    """The rows whose names match SAMPLED, all kinds and faults among them, in the order of the file."""
    path = tmp_path_factory.mktemp("usda") / "sample.csv"
    with usda.data_file().open(newline="", encoding="utf-8") as source, path.open("w", newline="") as target:
        writer = csv.writer(target)
        reader = csv.reader(source)
        writer.writerow(next(reader))
        writer.writerows(row for row in reader if SAMPLED.search(row[0]))
    return path


@pytest.fixture(scope="session")
def sample_url(postgres_server, postgres_runner, sample_file):
    """A database that holds the sample; tests add foods of users of their own."""
    url = postgres_runner.run(postgres_server.create_database("food_sample"))
    postgres_runner.run(load(url, sample_file))
    return url


@pytest.fixture
async def stub(sample_url):
    """A stub of the service on the sample."""
    async with serving(sample_url) as made:
        yield made
