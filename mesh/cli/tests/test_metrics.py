"""`mesh metrics`, beside a process that answers on its socket."""

from __future__ import annotations

import json
from pathlib import Path

from mesh.cli.tests.conftest import ROOT, Run, describe
from mesh.local.paths import Paths
from mesh.runtime.telemetry import private


def test_what_an_instance_counts_is_printed_and_where_it_may_be_read(home: Path, run: Run) -> None:
    paths = Paths.of(ROOT)
    paths.prepare_home()
    paths.prepare_run()
    describe(paths)
    where = paths.telemetry_socket("food-0")
    where.parent.mkdir()
    with private.answering(where):
        assert "\nprocess_cpu_seconds_total " in run("metrics", "food-0").output
        (place,) = json.loads(run("metrics", "--json").output)
    assert place == {"instance": "food-0", "app": str(where), "proxy": str(paths.admin_socket("food-0")), "url": ""}
    for arguments, code, said in (
        (("food-0",), 3, "food-0 does not answer"),
        (("food-0", "--proxy"), 3, "food-0 does not answer"),
        (("food-1",), 2, "did you mean 'food-0'"),
    ):
        done = run("metrics", *arguments)
        assert (done.exit_code, said in done.output) == (code, True)
