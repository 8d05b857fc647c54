import os
import signal

import pytest

from point_rend.utils.interruption import Terminated, terminable


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_end_the_block_as_ctrl_c_does(number: signal.Signals):
    former = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt) as raised, terminable():
        os.kill(os.getpid(), number)
    assert isinstance(raised.value, Terminated)
    assert raised.value.number == number
    assert signal.getsignal(number) == former


def test_an_ignored_signal_stays_ignored():
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with terminable():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, former)
