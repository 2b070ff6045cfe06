import logging
import sys
import threading
import warnings

import pytest

from pipeline.capture.quiet import quiet


def test_this_thread_is_silent_and_others_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    with quiet():
        print("exporter")
        print("exporter", file=sys.stderr)
        other = threading.Thread(target=lambda: print("progress"))
        other.start()
        other.join()
        warnings.warn("exporter", UserWarning, stacklevel=1)
    print("after")
    captured = capsys.readouterr()
    assert captured.out == "progress\nafter\n"
    assert captured.err == ""


def test_only_the_exporters_loggers_are_silent(caplog: pytest.LogCaptureFixture) -> None:
    with quiet():
        logging.getLogger("onnxscript.converter").warning("exporter")
        logging.getLogger("pipeline").warning("ours")
    logging.getLogger("onnxscript.converter").warning("later")
    assert caplog.messages == ["ours", "later"]


def test_everything_is_restored_after_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    out = sys.stdout
    with pytest.raises(RuntimeError), quiet():
        raise RuntimeError
    assert sys.stdout is out
    print("again")
    assert capsys.readouterr().out == "again\n"
