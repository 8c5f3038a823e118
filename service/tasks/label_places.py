"""Places in front of the text encoder for the texts of a request's labels: taken once, for all of them."""

from __future__ import annotations

from service.engine.admission import Admission, Ticket
from service.engine.batcher import Batcher
from service.timing import Deadline

# As many texts as are encoded at one time, and as a request may bring before it is known how fast they are done.
CHUNK_TEXTS = 64


class LabelTicket(Ticket):
    """The places of `places + more` texts: as long as there are more, a text that is done hands its place to the next.

    So a request of thousands of texts is let in once, leaves room for others, and is never refused halfway.
    """

    def __init__(self, admission: Admission, places: int, *, more: int, is_long: bool) -> None:
        super().__init__(admission, places, is_long=is_long)
        self._rate = admission.rate(is_long=is_long)
        self._more = more

    def end(self, *, was_done: bool, broken_s: float = 0.0) -> None:
        is_handed_on = was_done and self._more > 0
        super().end(was_done=was_done and not is_handed_on, broken_s=broken_s)
        if is_handed_on:
            self._more -= 1
            self._rate.finished()


def admit_labels(batcher: Batcher, texts: int, deadline: Deadline, *, max_places: int) -> LabelTicket:
    """Places for the texts of a request's labels, at most `max_places`; a context manager that gives them back.

    Raises:
        ServiceOverloaded: they would wait too long.
        ServiceNotReady: the worker is broken.
    """
    is_measured = batcher.admission.rate().per_s is not None
    places = min(texts, max_places if is_measured else min(max_places, CHUNK_TEXTS))
    is_long = batcher.admit(places, deadline).is_long
    return LabelTicket(batcher.admission, places, more=texts - places, is_long=is_long)
