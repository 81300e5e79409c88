"""How the tests are shared among processes: what conftest.py names exists."""

from pathlib import Path

from conftest import ALONE, LONGEST

ROOT = Path(__file__).parent.parent


def test_the_longest_come_first_and_exist(request):
    for name in (*ALONE, *LONGEST):
        path, _, test = name.partition("::")
        assert (ROOT / path).is_file(), name
        assert f"def {test.partition('[')[0]}" in (ROOT / path).read_text(encoding="utf-8"), name
    ranks = [
        next((i for i, name in enumerate(LONGEST) if item.nodeid.startswith(name)), len(LONGEST))
        for item in request.session.items
    ]
    assert ranks == sorted(ranks)
