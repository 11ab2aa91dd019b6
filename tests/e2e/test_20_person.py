"""A signed-in person keeps a profile and foods of their own; nobody else sees them."""

import json

import httpx
import pytest

SCOPES = ("profile.read", "profile.write", "food.write")
PROFILE = {
    "displayName": "Me",
    "sex": "SEX_FEMALE",
    "birthDate": {"year": 1990, "month": 5, "day": 17},
    "heightCm": 168,
    "weightKg": 64,
    "activityLevel": "ACTIVITY_LEVEL_MODERATE",
    "goals": ["GOAL_MAINTAIN_WEIGHT"],
    "allergies": ["peanuts"],
}


@pytest.fixture
def person(mesh):
    """A REST client of somebody new."""
    counter = iter(range(1000))

    def make(name: str = "alice", *scopes: str) -> httpx.Client:
        user = f"{name}-{id(counter)}-{next(counter)}"
        return httpx.Client(base_url=f"{mesh.url}/api/v1", headers=mesh.token(user, *(scopes or SCOPES)), timeout=20)

    return make


def test_a_profile_is_made_changed_and_deleted_and_its_targets_follow(person):
    me = person()
    made = me.post("/profiles", json=PROFILE).raise_for_status().json()
    before = me.get(f"/{made['name']}/targets").raise_for_status().json()
    change = {"weightKg": 80, "etag": made["etag"]}
    changed = me.patch(f"/{made['name']}", params={"updateMask": "weightKg"}, json=change).raise_for_status().json()
    after = me.get(f"/{made['name']}/targets").raise_for_status().json()
    assert (changed["weightKg"], changed["heightCm"]) == (80, 168)
    assert after["bmrKcal"] == pytest.approx(before["bmrKcal"] + 160, abs=0.5)  # Mifflin-St Jeor: 10 kcal a kg
    stale = me.patch(f"/{made['name']}", params={"updateMask": "weightKg"}, json={**change, "weightKg": 90})
    assert (stale.status_code, stale.json()["code"]) == (409, 10)
    me.delete(f"/{made['name']}").raise_for_status()
    assert me.get(f"/{made['name']}").status_code == 404
    assert me.get("/profiles", params={"showDeleted": True}).json()["profiles"][0]["expireTime"]
    back = me.post(f"/{made['name']}:undelete", json={}).raise_for_status().json()
    assert back == me.get(f"/{made['name']}").json()
    assert (back["weightKg"], back["allergies"]) == (80, ["peanuts"])


def test_nobody_else_sees_a_profile(person):
    name = person().post("/profiles", json=PROFILE).raise_for_status().json()["name"]
    other = person("mallory")
    assert other.get(f"/{name}").status_code == 404
    assert other.patch(f"/{name}", json={"weightKg": 50}).status_code == 404
    assert other.delete(f"/{name}").status_code == 404
    assert other.get("/profiles").json()["profiles"] == []


def test_ones_own_food_is_found_by_oneself_alone(person):
    me, other = person(), person("bob")
    food = {"displayName": "Grandmother's xyzzy pie", "nutrients": {"energyKcal": 250, "fatG": 10}}
    made = me.post("/foods", json=food).raise_for_status().json()
    assert made["source"] == "SOURCE_USER"
    search = {"query": "xyzzy pie"}
    assert me.get("/foods:search", params=search).json()["results"][0]["food"]["name"] == made["name"]
    assert made["name"] not in other.get("/foods:search", params=search).text
    assert other.get(f"/{made['name']}").status_code == 404
    assert other.delete(f"/{made['name']}").status_code == 404


def test_an_analysis_uses_the_persons_own_targets(person):
    me = person()
    profile = me.post("/profiles", json=PROFILE).raise_for_status().json()["name"]
    target = me.get(f"/{profile}/targets").json()["energyKcal"]
    body = {"lines": ["100 g granulated sugar"], "profile": profile}
    answer = me.post("/nutrition:analyze", json=body).raise_for_status().json()
    energy = next(value for value in answer["dailyValues"] if value["nutrient"] == "energy_kcal")
    assert (energy["dailyValue"], energy["source"]) == (pytest.approx(target), "profile")
    assert httpx.post(f"{me.base_url}nutrition:analyze", json=body).status_code == 401


def test_a_token_without_the_scope_is_refused(person):
    reader = person("carol", "profile.read")
    refused = reader.post("/profiles", json=PROFILE)
    assert (refused.status_code, refused.json()["details"][0]["reason"]) == (403, "PERMISSION_DENIED")


def test_ones_own_foods_are_imported_as_an_operation_that_oneself_alone_follows(mesh, person):
    me, other = person(), person("bob")
    foods = [{"displayName": f"Dish {n}"} for n in range(150)]
    name = me.post("/foods:import", json={"foods": foods}).raise_for_status().json()["name"]
    with me.stream("GET", f"/{name}:watch") as watched:
        operation = [json.loads(line) for line in watched.iter_lines() if line][-1]
    assert (operation["done"], operation["metadata"]["done"]) == (True, 150)
    assert me.get(f"/{operation['response']['names'][149]}").json()["displayName"] == "Dish 149"
    assert me.get(f"/{name}:wait").json() == operation
    assert [listed["name"] for listed in me.get("/operations/food").json()["operations"]] == [name]
    assert [other.get(f"/{name}{verb}").status_code for verb in ("", ":wait", ":watch")] == [404] * 3
    assert other.post(f"/{name}:cancel", json={}).status_code == 404
    job = mesh.json("jobs", "show", "food", name.rpartition("/")[2])
    assert (job["state"], len(job["argument"]["foods"])) == ("succeeded", 150)
    me.delete(f"/{name}").raise_for_status()
    assert me.get(f"/{name}").status_code == 404
