"""One of the two ends of a channel: it asks, it answers, and it answers while it waits for its own answer."""

from __future__ import annotations

import _thread
import io
from abc import ABC, abstractmethod

from dlmrl_kit.sandbox.inside.messages import read_messages, write_message
from dlmrl_kit.sandbox.inside.plain_data import from_bytes, to_bytes

TYPE_CHECKING = False  # of typing, whose import takes a sandbox a tenth of its start
if TYPE_CHECKING:
    from typing import Any, NoReturn

REPLIES = ("value", "raised")
"""The first elements of messages that answer a request."""


class Gone(BaseException):
    """The other end has been lost, or has sent what it must not; no ``except Exception`` of a test catches it."""


class Peer(ABC):
    """One end of a channel through which both ends may ask for something.

    A message is a list of data whose first element says what it is. Objects that are no data are sent as references.
    One thread at a time may ask.

    Args:
        channel: descriptor of a connected stream socket, which is closed at the end.
        message_limit: most bytes of a message that is received; None: no limit.
        budget: most bytes of all of them; None: no limit.
    """

    def __init__(self, channel: int, message_limit: int | None = None, budget: int | None = None) -> None:
        self._stream = io.FileIO(channel, "r+")
        self._messages = read_messages(self._stream, message_limit)
        self._budget = budget
        self._lock = _thread.RLock()
        self.gone = False

    @abstractmethod
    def answer(self, message: list[Any]) -> list[Any]:
        """Returns the reply to a request."""

    @abstractmethod
    def describe(self, value: object) -> object:
        """Returns what stands for an object that is no data (``plain_data.Describe``)."""

    @abstractmethod
    def find(self, reference: Any) -> object:
        """Returns the object that a reference stands for (``plain_data.Find``)."""

    def ask(self, *message: Any) -> list[Any]:
        """Sends a request and returns its reply.

        Raises:
            Gone: there will be none.
            TypeError: the request holds something that cannot be sent.
            ValueError: the same.
        """
        with self._lock:
            encoded = to_bytes(list(message), self.describe)
            self._send(encoded)
            while (received := self.receive())[0] not in REPLIES:
                self.reply(received)
            return received

    def receive(self) -> list[Any]:
        """Returns the next message.

        Raises:
            Gone: there is none, or it is none.
        """
        encoded = None if self.gone else next(self._messages, None)
        if encoded is None:
            self._lose()
        if self._budget is not None:
            self._budget -= len(encoded)
            if self._budget < 0:
                self._lose()
        try:
            message = from_bytes(encoded, self.find)
        except (ValueError, RecursionError, MemoryError):
            self._lose()
        if not isinstance(message, list) or not message or not isinstance(message[0], str):
            self._lose()
        return message

    def reply(self, request: list[Any]) -> None:
        """Answers a request.

        Raises:
            Gone: nobody is there to take the answer.
        """
        reply = self.answer(request)
        try:
            encoded = to_bytes(reply, self.describe)
        except Exception as error:
            encoded = to_bytes(["raised", "TypeError", [f"cannot be sent: {error}"]])
        self._send(encoded)

    def _send(self, encoded: bytes) -> None:
        if self.gone:
            self._lose()
        try:
            write_message(self._stream, encoded)
        except OSError:
            self._lose()

    def _lose(self) -> NoReturn:
        self.gone = True
        raise Gone("the program has ended")
