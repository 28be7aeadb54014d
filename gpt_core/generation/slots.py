"""Cache slots with prefix caching: which tokens each slot has cached.

A slot stays cached after its request until it is needed: a prompt that shares a prefix with a cached sequence reuses
its keys and values (prefix caching as in vLLM and SGLang, Zheng et al. 2023, by whole slots).
"""

from gpt_core.model.cache import Cache


class Slots:
    """Allocates the slots of `cache`.

    Attributes:
        ids: for each slot, the tokens whose keys and values are cached.
    """

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.ids: list[list[int]] = [[] for _ in cache.high_water]
        self._idle = list(range(len(self.ids)))  # without a request; least recently used first

    @property
    def any_idle(self) -> bool:
        """Whether a slot is free for `take`."""
        return bool(self._idle)

    def n_cached(self, prompt: list[int]) -> int:
        """Length of the longest prefix of `prompt` that any slot has cached."""
        return max(n_shared(prompt, ids) for ids in self.ids)

    def take(self, prompt: list[int]) -> int:
        """Allocate an idle slot, with the longest cached prefix of `prompt[:-1]` copied into it.

        The last token is never reused: the logits of the next token need a forward over it.
        """
        shared = [n_shared(prompt[:-1], ids) for ids in self.ids]
        source = max(self._idle[::-1] + list(range(len(shared))), key=lambda slot: shared[slot])
        n = shared[source]
        # Reuse the slot in place if all of its tokens are the shared prefix or it is the only idle one; otherwise copy.
        if source in self._idle and (n == len(self.ids[source]) or len(self._idle) == 1):
            target = source
            self.cut(target, n)
        else:
            target = next(slot for slot in self._idle if slot != source)
            self.cache.copy(source, target, n)
            self.ids[target] = prompt[:n]
        self._idle.remove(target)
        return target

    def release(self, slot: int) -> None:
        """Mark the slot as idle; its tokens stay cached until it is allocated again."""
        self._idle.append(slot)

    def cut(self, slot: int, length: int) -> None:
        """Truncate `slot` to its first `length` tokens."""
        self.cache.cut(slot, length)
        del self.ids[slot][length:]


def n_shared(a: list[int], b: list[int]) -> int:
    """Length of the common prefix of `a` and `b`, by bisection."""
    low, high = 0, min(len(a), len(b))
    while low < high:  # comparing slices runs in C
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
