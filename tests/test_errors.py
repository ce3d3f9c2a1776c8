from __future__ import annotations

import pytest

from hast_lightning.errors import first_line


@pytest.mark.parametrize(
    ("message", "line"),
    [("one", "one"), ("\n one \ntwo", "one "), ("", "ValueError('')"), ("\n", "ValueError('\\n')")],
)
def test_the_first_line_of_an_error_is_never_empty(message: str, line: str) -> None:
    assert first_line(ValueError(message)) == line
    assert first_line(ValueError()) == "ValueError()"
