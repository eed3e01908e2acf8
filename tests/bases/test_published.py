"""A repository as a base: one commit for all of it, and one command that brings all of it."""

import pytest

from rapm_cli.bases.hub import OUTLINE, PIPELINE, fetch
from rapm_cli.bases.published import Published
from rapm_cli.core.common.errors import WeightsError
from tests.bases.hub_pipeline import NEEDED, REPO
from tests.bases.hub_server import Seen


def test_a_branch_is_looked_up_once_and_what_is_pushed_meanwhile_is_left_alone(hub):
    published = Published(REPO, None)
    outline = published.outline(Seen())
    commit = hub.commit(REPO)
    assert outline.identity == f"{REPO}@{commit}"
    published.weights(Seen())
    hub.repos[REPO]["vae/config.json"] = b"pushed"
    hub.forget()
    weights = published.weights(Seen())
    assert (weights.identity, sorted(weights.files)) == (outline.identity, sorted(NEEDED))
    assert published.configs(Seen()).files == outline.files
    assert hub.requests == []


def test_who_lacks_the_outline_is_told_how_to_get_the_weights_too(hub, offline):
    offline()
    remedies = set()
    for selection in (OUTLINE, PIPELINE):
        with pytest.raises(WeightsError) as caught:
            fetch(REPO, None, selection, Seen())
        remedies.add(caught.value.remedy)
    assert len(remedies) == 1
