"""The guard of tests against a hang."""

import signal
import time

import pytest

from tests.conftest import hang_guard


def hang() -> None:
    """Retry forever and swallow every `Exception`."""
    while True:
        try:
            time.sleep(60)
        except Exception:
            continue


def test_a_block_that_hangs_fails_its_test() -> None:
    with pytest.raises(pytest.fail.Exception, match="did not end within 1 s"), hang_guard(1):
        hang()


def test_the_guard_leaves_no_alarm_behind() -> None:
    before = signal.getsignal(signal.SIGALRM)
    with hang_guard():
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    assert signal.getsignal(signal.SIGALRM) is before
