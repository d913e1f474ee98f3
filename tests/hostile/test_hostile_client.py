"""A host may lie: every hostile answer of the corpus is refused where its file says."""

import pytest
from hostile import corpus, readers

ANSWERS = corpus.every("client")


@pytest.fixture(scope="module")
def client():
    with readers.Client() as made:
        yield made


@pytest.mark.parametrize("name", ANSWERS)
def test_a_hostile_answer_is_refused_at_its_layer(client, name):
    answer = ANSWERS[name]
    layer, reason = client.read(answer)
    assert layer == answer.layer
    if layer not in corpus.GNUPG_DECIDES:
        assert reason == answer.reason
