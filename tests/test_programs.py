"""`attention-to-scale`: every program under one name."""

import pytest

from repro.__main__ import PROGRAMS, main


@pytest.mark.parametrize("name", PROGRAMS)
def test_each_program_answers(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert "usage: " in capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), ([], 2), (["walk"], 2)])
def test_the_programs_are_listed(arguments, code, capsys):
    assert main(arguments) == code
    text = "".join(capsys.readouterr())
    assert all(f"  {name} " in text for name in PROGRAMS)
