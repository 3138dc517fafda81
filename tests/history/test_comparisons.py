from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from canvas.errors import InvalidInput, NotFound
from canvas.history.comparisons import Comparison, Comparisons, VoteCount
from canvas.history.database import Database
from canvas.history.images import ImageRepository
from canvas.history.statistics import compute_statistics
from canvas.request import GenerationRequest

from .conftest import make_image

FOX = make_image(width=128, height=128, seed=5).request
ASKED = (FOX, replace(FOX, preset="turbo"), replace(FOX, model_key="small"))


def vote(kept: Comparisons, owner: str, place: int, *asked: GenerationRequest) -> Comparison:
    made = kept.add(owner, asked or ASKED)
    kept.vote(made, place)
    return made


def test_comparisons_and_votes_outlive_the_program(tmp_path: Path) -> None:
    database = Database(tmp_path / "ai_images.db")
    made = vote(Comparisons(database), "anna", 1)
    database.close()
    database = Database(tmp_path / "ai_images.db")
    again = Comparisons(database).get(made.id, "anna")
    assert again == replace(made, chosen=1)
    assert Comparisons(database).latest("anna", 5) == [again]
    database.close()


def test_a_vote_is_given_once(database: Database) -> None:
    kept = Comparisons(database)
    made = vote(kept, "anna", 1)
    kept.vote(made, 2)
    assert kept.get(made.id, "anna").chosen == 1
    with pytest.raises(InvalidInput, match="place: 3 cannot be used; allowed is 0 to 2"):
        kept.vote(made, 3)


def test_nobody_sees_anothers(database: Database) -> None:
    kept = Comparisons(database)
    made = vote(kept, "anna", 0)
    with pytest.raises(NotFound):
        kept.get(made.id, "berta")
    assert kept.latest("berta", 5) == []
    assert kept.tally("berta") == ()
    assert compute_statistics(database, "berta").votes == ()


def test_the_tally_counts_what_was_voted_on(database: Database) -> None:
    kept = Comparisons(database)
    vote(kept, "anna", 1)
    vote(kept, "anna", 1, FOX, ASKED[2])
    vote(kept, "berta", 0)
    kept.add("anna", ASKED)
    assert kept.tally("anna") == (
        VoteCount("tiny", "turbo", 1, 1),
        VoteCount("small", "quality", 1, 2),
        VoteCount("tiny", "quality", 0, 2),
    )
    assert sum(row.chosen for row in kept.tally(None)) == 3


def test_erasing_everything_takes_them_along(repository: ImageRepository) -> None:
    kept = Comparisons(repository.database)
    vote(kept, "anna", 0)
    others = vote(kept, "berta", 0)
    repository.delete_all("anna")
    assert kept.tally("anna") == ()
    assert [one.id for one in kept.latest("berta", 5)] == [others.id]


def test_pictures_are_found_by_their_request(repository: ImageRepository) -> None:
    kept = Comparisons(repository.database)
    made = kept.add("anna", ASKED)
    later = made.created_at + timedelta(seconds=1)
    turbo = repository.save(replace(make_image(), request=ASKED[1], created_at=later, owner="anna"))
    repository.save(replace(make_image(), request=FOX, created_at=later, owner="berta"))
    repository.save(replace(make_image(), request=FOX, owner="anna"))  # long before
    found = [kept.find_image(made, place) for place in range(3)]
    assert [image and image.id for image in found] == [None, turbo.id, None]
