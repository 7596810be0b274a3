"""Read items by threads, in order."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["READER_THREADS", "prefetch"]

READER_THREADS, _PREFETCH = 4, 32
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def prefetch(
    read: Callable[[_Item], _Result], items: Iterable[_Item]
) -> Generator[_Result, None, None]:
    """Yield results in order while threads read ahead (decoders release the GIL).

    Args:
        read: called in a thread with each item; its exception is raised here.
        items: what to read.
    """
    with ThreadPoolExecutor(READER_THREADS) as pool:
        pending: deque[Future[_Result]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(read, item))
                if len(pending) > _PREFETCH:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
