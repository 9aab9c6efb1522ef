"""One end of a conversation that outlives the connections which carry it.

Each frame has a number. What was sent is kept until the other end has said that it heard it; after a cut each end says
how much it has heard, and the other sends the rest again, in order. A frame that comes twice is passed over.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any, Final

from shoal.core.framing import FramingError

#: Numbers on the wire go from 1 to this, and then from 1 again; 0 is a frame outside of the conversation.
_ROUND: Final = 0xFFFFFFFF
#: What was heard is acknowledged after so many frames or bytes at the latest.
ACK_FRAMES: Final = 64
ACK_BYTES: Final = 1 << 20


def to_wire(number: int) -> int:
    """The form in which ``number`` stands in a header."""
    return number % _ROUND + 1


def from_wire(short: int, near: int) -> int:
    """The number that a header means, which is not far from ``near``."""
    delta = (short - 1 - near) % _ROUND
    return near + (delta if delta <= _ROUND // 2 else delta - _ROUND)


class Channel:
    """What was sent and may have to be sent again, and how much was heard.

    Parameters
    ----------
    token
        Names the conversation; random, so that nobody resumes that of another.
    """

    __slots__ = ("_kept", "_unsaid_bytes", "_unsaid_frames", "begun", "heard", "kept_bytes", "sent", "token")

    def __init__(self, token: bytes) -> None:
        self.token = token
        #: Whether a connection has carried it.
        self.begun = False
        #: Frames sent, and frames heard.
        self.sent = self.heard = 0
        #: Bytes of the frames that may have to be sent again.
        self.kept_bytes = 0
        self._kept: deque[tuple[Any, int]] = deque()
        self._unsaid_frames = self._unsaid_bytes = 0

    @property
    def kept(self) -> int:
        """How many frames the other end has not acknowledged."""
        return len(self._kept)

    def header(self) -> tuple[int, int]:
        """Number and acknowledgement for the next frame, which :meth:`keep` must follow."""
        self._unsaid_frames = self._unsaid_bytes = 0
        return to_wire(self.sent), to_wire(self.heard)

    def keep(self, frame: Any, nbytes: int) -> None:
        """Hold on to a frame that is being sent."""
        self.sent += 1
        self.kept_bytes += nbytes
        self._kept.append((frame, nbytes))

    def acknowledged(self, short: int) -> None:
        """The other end has heard so much.

        Raises
        ------
        FramingError
            If that is more than was sent.
        """
        if not short:
            return
        heard = from_wire(short, self.sent)
        if heard > self.sent:
            raise FramingError(f"{heard} frames are acknowledged, {self.sent} were sent")
        while self._kept and self.sent - len(self._kept) < heard:
            _, nbytes = self._kept.popleft()
            self.kept_bytes -= nbytes

    def hears(self, short: int, nbytes: int) -> bool:
        """A frame arrived: whether it is new.

        Raises
        ------
        FramingError
            If one before it is missing.
        """
        number = from_wire(short, self.heard)
        if number > self.heard:
            raise FramingError(f"frame {number} came, and {self.heard} was expected")
        if number < self.heard:
            return False
        self.heard += 1
        self._unsaid_frames += 1
        self._unsaid_bytes += nbytes
        return True

    @property
    def should_say(self) -> bool:
        """Whether so much was heard since the last frame that went back that it is to be acknowledged by itself."""
        return self._unsaid_frames >= ACK_FRAMES or self._unsaid_bytes >= ACK_BYTES

    def again(self, short: int) -> Iterator[Any]:
        """The frames that the other end, which has heard so much, has not heard.

        Raises
        ------
        FramingError
            If it has forgotten what it once acknowledged.
        """
        heard = from_wire(short, self.sent)
        if not self.sent - len(self._kept) <= heard <= self.sent:
            raise FramingError(f"the other side has heard {heard} frames; {len(self._kept)} of {self.sent} are kept")
        self.acknowledged(short)
        return iter([frame for frame, _ in self._kept])
