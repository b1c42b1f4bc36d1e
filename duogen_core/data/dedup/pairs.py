"""Which documents go, by which rule, and whose duplicates they are: decided on arrays, for all documents at once.

    found = Decided.start(count);  same_address(found, …);  same_text(found, …);  near(found, documents, rules)

A rule compares documents that are left and lets the better of two stay: the longest or the newest (`Documents.rank`).
`near` takes pairs that share a band of their signatures, or most blocks of an image's hash, and then looks at all that
is known of both: the exact share of shingles, numbers and images. It takes them in the order of rank, and a document
goes only for a better one that stays, so of a chain (A like B, B like C, A unlike C) A and C stay.

Documents with an equal band are sorted by length and each is compared with the next WINDOW: near-duplicates are about
equally long, so a band that thousands share costs no square of them. While such a band was cut and something went, the
rest is compared again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from duogen_core.data.dedup.features import Ragged

RULES = ("", "same_address", "near_duplicate", "same_images")
WINDOW = 32
ROUNDS = 10
BLOCKS, UNTOUCHED = 6, 2  # of the 64 bits; so many of them are equal for a candidate: surely so where 4 bits differ
PIECE = 2**14  # pairs that are compared at once
ONES = np.array([bin(value).count("1") for value in range(256)], np.uint8)


@dataclass
class Decided:
    rule: np.ndarray  # index in RULES; 0 for what stays
    partner: np.ndarray  # -1 for what stays
    value: np.ndarray  # what the rule measured

    @classmethod
    def start(cls, count: int) -> Decided:
        return cls(np.zeros(count, np.int8), np.full(count, -1, np.int64), np.zeros(count, np.float32))

    @property
    def left(self) -> np.ndarray:
        return self.rule == 0

    def drop(self, number: int, rule: str, partner: int, value: float) -> None:
        self.rule[number], self.partner[number], self.value[number] = RULES.index(rule), partner, value


@dataclass
class Documents:
    """What is known of all documents. rank: the place of each from the best on."""

    rank: np.ndarray
    signatures: np.ndarray  # [documents, hashes]
    lengths: np.ndarray  # in shingles
    thin: np.ndarray  # whether it has hardly any text of its own
    shingles: Ragged
    numbers: Ragged
    pictures: Ragged  # perceptual hashes, without those of addresses that repeat


def ranked(keep: str, lengths: np.ndarray, times: np.ndarray, images: np.ndarray, *ties: np.ndarray) -> np.ndarray:
    """The place of each document, the best first: by length, or by time and then length; then by images and ties."""
    by = [-lengths, -images, *ties]
    order = np.lexsort(tuple(reversed([-times, *by] if keep == "newest" else by)))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return rank


def same(found: Decided, values: np.ndarray, rank: np.ndarray, rule: str) -> None:
    """Of documents with one value (0: none) only the best stays."""
    left = np.flatnonzero(found.left & (values != 0))
    order = left[np.lexsort((rank[left], values[left]))]
    best = -1
    for at, number in enumerate(order):
        if at == 0 or values[number] != values[order[at - 1]]:
            best = number
        else:
            found.drop(number, rule, best, 1.0)


def near(found: Decided, documents: Documents, rules: Mapping[str, Mapping[str, Any]]) -> None:
    # Of two duplicates one goes, so a pair of which both stay was judged unlike, and need not be judged again.
    unlike = np.empty(0, np.int64)
    for _ in range(ROUNDS):
        pairs, cut = candidates(found.left, documents, rules)
        numbers = pairs[:, 0] * len(documents.rank) + pairs[:, 1]
        pairs = pairs[~np.isin(numbers, unlike)]
        edges: dict[int, list[tuple[int, str, float]]] = defaultdict(list)
        for one, other in pairs.tolist():
            if documents.rank[one] > documents.rank[other]:
                one, other = other, one
            if verdict := judge(documents, one, other, rules):
                edges[other].append((one, *verdict))
        gone = False
        for worse in sorted(edges, key=lambda number: documents.rank[number]):
            staying = [edge for edge in edges[worse] if found.left[edge[0]]]
            if staying:
                partner, rule, value = min(staying, key=lambda edge: documents.rank[edge[0]])
                found.drop(worse, rule, partner, value)
                gone = True
        if not (cut and gone):
            return
        unlike = np.union1d(unlike, numbers)


def judge(documents: Documents, one: int, other: int, rules: Mapping[str, Any]) -> tuple[str, float] | None:
    """The rule by which two documents are duplicates, and the value it decided by."""
    near, images = rules["near"], rules["images"]
    text = jaccard(documents.shingles[one], documents.shingles[other])
    mine, theirs = documents.pictures[one], documents.pictures[other]
    both = len(mine) > 0 and len(theirs) > 0
    shared = shared_images(mine, theirs, images["max_bits"]) if both else 0.0
    first, second = documents.numbers[one], documents.numbers[other]
    union = len(np.union1d(first, second))
    same_numbers = (
        union < near["min_numbers"] or text >= near["sure_text"] or jaccard(first, second) >= near["min_shared_numbers"]
    )
    limit = near["min_text"] if not both else near["min_text_same_images" if shared >= 0.5 else "min_text_other_images"]
    if documents.thin[one] or documents.thin[other]:  # what they share may be all the site's
        limit = max(limit, near["min_text_other_images"])
        same_numbers &= not both or shared > 0
    if same_numbers and text >= limit:
        return "near_duplicate", text
    enough = min(len(mine), len(theirs)) >= images["min_images"]
    if both and enough and shared >= images["min_shared"] and text >= images["min_text"]:
        return "same_images", shared
    return None


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """Of two sorted arrays without repeats."""
    if not len(one) or not len(other):
        return 0.0
    both = np.concatenate([one, other])
    both.sort()
    equal = int((both[1:] == both[:-1]).sum())
    return equal / (len(both) - equal)


def shared_images(one: np.ndarray, other: np.ndarray, most: int) -> float:
    """The share of images that two documents have in common."""
    apart = bits_apart(one[:, None], other[None, :]) <= most
    both = min(int(apart.any(1).sum()), int(apart.any(0).sum()))
    return both / (len(one) + len(other) - both)


def bits_apart(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    differing = np.ascontiguousarray(np.bitwise_xor(one, other))
    return ONES[differing.view(np.uint8).reshape(*differing.shape, 8)].sum(-1)


# ------------------------------------------------------------ candidates


def candidates(
    left: np.ndarray, documents: Documents, rules: Mapping[str, Mapping[str, Any]]
) -> tuple[np.ndarray, bool]:
    """Pairs [n, 2] that may be duplicates, each once, and whether a band or block was too common to compare all."""
    near, found, cut = rules["near"], [np.empty((0, 2), np.int64)], False
    order = np.flatnonzero(left & (documents.lengths > 0))
    order = order[np.lexsort((documents.rank[order], documents.lengths[order]))]
    lowest = min(near["min_text"], near["min_text_other_images"])  # those with the same images are found by these
    # the lowest eight bits of a third of the hashes: small enough to stay in the processor's cache
    coarse = documents.signatures[:, : -(-near["hashes"] // 3)].astype(np.uint8)
    rows = near["hashes"] // near["bands"]
    for band in range(near["bands"]):
        keys = np.zeros(len(order), np.uint64)
        for column in range(band * rows, (band + 1) * rows):
            keys = _mix(keys, documents.signatures[order, column].astype(np.uint64))
        for one, other in neighbours(keys, order):
            found.append(_likely(documents.signatures, coarse, one, other, lowest))
        cut |= _too_common(keys)
    with_images = np.flatnonzero(left & (documents.pictures.sizes > 0))
    for keys, numbers in image_keys(documents, with_images, rules["images"]["max_bits"]):
        for one, other in neighbours(keys, numbers):
            differ = one != other
            found.append(np.stack([one[differ], other[differ]], 1))
        cut |= _too_common(keys)
    pairs = np.concatenate(found)
    pairs.sort(axis=1)
    return np.unique(pairs, axis=0), cut


def image_keys(documents: Documents, numbers: np.ndarray, most: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Keys, and the documents they are of: the whole hash, or every two of its six blocks."""
    if not len(numbers):
        return
    numbers = numbers[np.lexsort((documents.rank[numbers], documents.pictures.sizes[numbers]))]
    hashes = np.concatenate([documents.pictures[number] for number in numbers])
    owners = np.repeat(numbers, documents.pictures.sizes[numbers])
    if most == 0:
        yield hashes, owners
        return
    ends = [round(64 * block / BLOCKS) for block in range(BLOCKS + 1)]
    for chosen in combinations(range(BLOCKS), UNTOUCHED):
        mask = sum(((1 << ends[block + 1]) - 1) ^ ((1 << ends[block]) - 1) for block in chosen)
        yield hashes & np.uint64(mask), owners


def neighbours(keys: np.ndarray, numbers: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of documents with an equal key, those that stand at most WINDOW apart in the order of `numbers`."""
    order = np.argsort(keys, kind="stable")
    keys, numbers = keys[order], numbers[order]
    for step in range(1, WINDOW + 1):
        places = np.flatnonzero(keys[step:] == keys[:-step])
        if not len(places):
            return
        yield numbers[places], numbers[places + step]


def _too_common(keys: np.ndarray) -> bool:
    ordered = np.sort(keys)
    return bool((ordered[WINDOW + 1 :] == ordered[: -WINDOW - 1]).any())


def _likely(
    signatures: np.ndarray, coarse: np.ndarray, one: np.ndarray, other: np.ndarray, lowest: float
) -> np.ndarray:
    """Pairs whose signatures say that they may share so much; the limits lie three standard deviations below, since
    equal hashes only estimate. Most pairs with an equal band share little, which the coarse ones tell already."""
    kept = [np.empty((0, 2), np.int64)]
    for start in range(0, len(one), PIECE):
        pairs = np.stack([one[start : start + PIECE], other[start : start + PIECE]], 1)
        for hashes in (coarse, signatures):
            equal = hashes.take(pairs[:, 0], 0) == hashes.take(pairs[:, 1], 0)
            least = lowest - 3 * float(np.sqrt(lowest * (1 - lowest) / hashes.shape[1]))
            pairs = pairs[np.count_nonzero(equal, axis=1) >= least * hashes.shape[1]]
        kept.append(pairs)
    return np.concatenate(kept)


def _mix(keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    keys = (keys ^ values) * np.uint64(0x9E3779B97F4A7C15)
    return keys ^ (keys >> np.uint64(32))
