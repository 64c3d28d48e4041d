"""The command `fairlib`: its help, and the status with which it ends."""

import subprocess
import sys

from fairlib.cli import main


def test_an_interrupt_is_one_line_and_status_130(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("fairlib.commands.examine", interrupted)
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err == "fairlib: interrupted\n"


def test_help_needs_nothing_heavy():
    code = """import sys, fairlib.cli
try: fairlib.cli.main(["--help"])
except SystemExit: print(*sys.modules, file=sys.stderr)"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "doctor" in result.stdout
    assert not {"torch", "pandas", "numpy"} & set(result.stderr.split())
