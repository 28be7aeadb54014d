"""The slots of a cache, and which text each of them holds.

What a request leaves behind stays until its slot is needed: a prompt that begins like an earlier text is not read again
from its beginning (the prefix caching of vLLM and SGLang, Zheng et al. 2023, by whole slots).
"""

from gpt_core.model.cache import Cache


class Slots:
    """Hands out the slots of `cache`.

    Attributes:
        ids: the tokens whose keys and values each slot holds.
    """

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.ids: list[list[int]] = [[] for _ in cache.reach]
        self._idle = list(range(len(self.ids)))  # without a request; the one longest unused first

    @property
    def any_idle(self) -> bool:
        """Whether `take` has a slot to give."""
        return bool(self._idle)

    def n_held(self, prompt: list[int]) -> int:
        """The most first tokens of `prompt` that a slot holds."""
        return max(n_shared(prompt, ids) for ids in self.ids)

    def take(self, prompt: list[int]) -> int:
        """An idle slot that now holds the first tokens of `prompt`, as many as any slot held; not its last one.

        The last one is left to be read, since it brings the logits of what follows.
        """
        shared = [n_shared(prompt[:-1], ids) for ids in self.ids]
        source = max(self._idle[::-1] + list(range(len(shared))), key=lambda slot: shared[slot])
        n = shared[source]
        # Going on where the whole text of an idle slot is shared costs nothing, and nobody loses his beginning.
        if source in self._idle and (n == len(self.ids[source]) or len(self._idle) == 1):
            target = source
            self.cut(target, n)
        else:
            target = next(slot for slot in self._idle if slot != source)
            self.cache.copy(source, target, n)
            self.ids[target] = prompt[:n]
        self._idle.remove(target)
        return target

    def give_back(self, slot: int) -> None:
        """Let the slot serve others, and keep its text until then."""
        self._idle.append(slot)

    def cut(self, slot: int, length: int) -> None:
        """Forget what `slot` holds beyond its first `length` tokens."""
        self.cache.cut(slot, length)
        del self.ids[slot][length:]


def n_shared(a: list[int], b: list[int]) -> int:
    """How many first tokens `a` and `b` share."""
    low, high = 0, min(len(a), len(b))
    while low < high:  # slices compare in C
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
