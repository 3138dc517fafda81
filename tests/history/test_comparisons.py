from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from canvas.errors import InvalidInput, NotFound
from canvas.history.comparisons import Comparison, Comparisons, VoteCount
from canvas.history.database import Database
from canvas.history.images import ImageRepository
from canvas.history.statistics import compute_statistics
from canvas.request import OLD_FIELD_NAMES, GeneratedImage, GenerationRequest

from .conftest import make_image

FOX = make_image(width=128, height=128, seed=5).request
REQUESTS = (FOX, replace(FOX, preset="turbo"), replace(FOX, model_key="small"))


def add_with_vote(comparisons: Comparisons, owner: str, position: int, *requests: GenerationRequest) -> Comparison:
    comparison = comparisons.add(owner, requests or REQUESTS)
    comparisons.vote(comparison, position)
    return comparison


def save_for(repository: ImageRepository, comparison: Comparison, position: int) -> GeneratedImage:
    """Save the image of a request of a comparison, without adding it there."""
    return repository.save(
        replace(
            make_image(),
            request=comparison.requests[position],
            created_at=comparison.created_at + timedelta(seconds=1),
            owner=comparison.owner,
        )
    )


def test_comparisons_and_votes_are_persistent(tmp_path: Path) -> None:
    database = Database(tmp_path / "ai_images.db")
    comparison = add_with_vote(Comparisons(database), "anna", 1)
    database.close()
    database = Database(tmp_path / "ai_images.db")
    found = Comparisons(database).get(comparison.id, "anna")
    assert found == replace(comparison, chosen=1)
    assert not found.blind
    assert Comparisons(database).latest("anna", 5) == [found]
    database.close()


def test_only_the_first_vote_counts(database: Database) -> None:
    comparisons = Comparisons(database)
    comparison = add_with_vote(comparisons, "anna", 1)
    comparisons.vote(comparison, 2)
    assert comparisons.get(comparison.id, "anna").chosen == 1
    for position in (-1, 3):
        with pytest.raises(InvalidInput, match=rf"Position must be .* between 0 and 2 \(got {position}\)"):
            comparisons.vote(comparison, position)


def test_comparisons_of_other_owners_are_not_found(database: Database) -> None:
    comparisons = Comparisons(database)
    comparison = add_with_vote(comparisons, "anna", 0)
    with pytest.raises(NotFound):
        comparisons.get(comparison.id, "berta")
    assert comparisons.latest("berta", 5) == []
    assert comparisons.tally("berta") == ()
    assert compute_statistics(database, "berta").votes == ()


def test_tally_counts_comparisons_with_a_vote(database: Database) -> None:
    comparisons = Comparisons(database)
    add_with_vote(comparisons, "anna", 1)
    add_with_vote(comparisons, "anna", 1, FOX, REQUESTS[2])
    add_with_vote(comparisons, "berta", 0)
    comparisons.add("anna", REQUESTS)
    assert comparisons.tally("anna") == (
        VoteCount("tiny", "turbo", 1, 1),
        VoteCount("small", "quality", 1, 2),
        VoteCount("tiny", "quality", 0, 2),
    )
    assert sum(row.chosen for row in comparisons.tally(None)) == 3


def test_delete_all_deletes_the_comparisons_of_the_owner(repository: ImageRepository) -> None:
    comparisons = Comparisons(repository.database)
    add_with_vote(comparisons, "anna", 0)
    other = add_with_vote(comparisons, "berta", 0)
    repository.delete_all("anna")
    assert comparisons.tally("anna") == ()
    assert [each.id for each in comparisons.latest("berta", 5)] == [other.id]


def test_saved_images_are_added_by_their_request(repository: ImageRepository) -> None:
    comparisons = Comparisons(repository.database)
    earlier = repository.save(replace(make_image(), request=FOX, owner="anna"))
    comparison = comparisons.add("anna", REQUESTS)
    turbo = save_for(repository, comparison, 1)
    second = save_for(repository, comparison, 1)
    other = repository.save(replace(make_image(), request=FOX, owner="berta"))
    for image in (earlier, turbo, second, other):
        comparisons.add_image(image)
    assert [image and image.id for image in comparisons.images(comparison)] == [None, turbo.id, None]
    repository.database.mark_missing([turbo.id or 0])
    assert comparisons.images(comparison) == [None] * 3


def test_images_of_older_comparisons_are_found_when_migrating(repository: ImageRepository) -> None:
    path = repository.database.path
    comparison = Comparisons(repository.database).add("anna", REQUESTS)
    images = [save_for(repository, comparison, position) for position in (1, 2)]
    repository.database.close()
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("ALTER TABLE comparisons DROP COLUMN image_ids; PRAGMA user_version = 7")
        old = {new: old for old, new in OLD_FIELD_NAMES.items()}
        requests = [{old.get(name, name): value for name, value in request.to_dict().items()} for request in REQUESTS]
        connection.execute("UPDATE comparisons SET requests = ?", [json.dumps(requests)])
        connection.execute(
            "UPDATE generated_images SET options = "
            "json_set(json_remove(options, '$.preset'), '$.mode', options ->> '$.preset')"
        )
        connection.commit()
    database = Database(path)
    comparisons = Comparisons(database)
    assert comparisons.get(comparison.id, "anna") == comparison
    found = comparisons.images(comparison)
    assert [image and image.id for image in found] == [None, images[0].id, images[1].id]
    late = make_image(created_at=comparison.created_at + timedelta(seconds=9), owner="anna")
    comparisons.add_image(database.save_image(replace(late, request=FOX)))
    assert comparisons.images(comparison)[0] is not None
    database.close()


def test_blind_comparisons_stay_blind_until_they_are_deleted(database: Database) -> None:
    comparisons = Comparisons(database)
    comparison = comparisons.add("anna", REQUESTS, blind=True)
    assert comparisons.get(comparison.id, "anna").blind
    comparisons.delete(comparison)
    with pytest.raises(NotFound, match=comparison.id):
        comparisons.get(comparison.id, "anna")
