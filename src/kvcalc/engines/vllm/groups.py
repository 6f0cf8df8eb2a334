"""vLLM's planner: the groups in which the caches of a model's layers draw blocks from one pool, and their block.

Source: vllm 0.33.0 v1/core/kv_cache_planning.py; what older versions do otherwise stands in
:mod:`kvcalc.engines.vllm.versions`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from kvcalc.engines.vllm.specs import FULL, Form, Spec
from kvcalc.engines.vllm.versions import Rules
from kvcalc.errors import UnsupportedError
from kvcalc.units import ceil_div

_LOCAL = ("sliding", "chunked")
_WINDOWED = ("sliding", "sliding latent")


@dataclass(frozen=True, slots=True)
class Groups:
    """The specs as the planner changed them, and its groups as lists of indices into them."""

    specs: list[Spec]
    groups: list[list[int]]


def grouped(model: str, specs: list[Spec], rules: Rules, *, packs: bool) -> Groups:
    """The groups of a model's caches (get_kv_cache_groups).

    Args:
        model: its name, for refusals.
        specs: one for each cache, in the order of the layers.
        rules: what the version does.
        packs: pages of several sizes stand side by side in one block (DeepSeek V4's block-outermost layout).
    """
    if not specs:
        return Groups([], [])
    if is_one_type(specs):
        return Groups(specs, [list(range(len(specs)))])
    if packs and len({spec.page for spec in specs}) > 1:
        return Groups(specs, _packed(specs)) if rules.packing == "split" else _in_tuples(model, specs, rules)
    unified = _unified(specs, rules)
    if unified is None:
        # A latent page neither grows nor is padded; beside ordinary windows vLLM then takes all layers as full ones.
        local = any(spec.form == "sliding" for spec in specs) and not any(spec.form == "chunked" for spec in specs)
        fallback = promoted(specs) if rules.pads_attention and local else None
        if fallback is None:
            pages = ", ".join(f"{page:,}" for page in sorted({spec.page for spec in specs}))
            raise UnsupportedError(f"vllm cannot give {model} pages of one size: {pages} bytes")
        return Groups(fallback, [list(range(len(specs)))])
    buckets: dict[Spec, list[int]] = {}
    for index, spec in enumerate(unified):
        buckets.setdefault(spec, []).append(index)
    size, largest = min(map(len, buckets.values())), max(map(len, buckets.values()))
    # 18 sliding and 13 full layers: 18 is below 1.5 x 13, so two groups of 18, one with 5 padding layers.
    if rules.padding_percent is not None and 100 * largest < rules.padding_percent * size:
        size = largest
    groups = []
    for layers in buckets.values():
        count = ceil_div(len(layers), size)
        groups += [layers[at::count] for at in range(count)]
    return Groups(unified, groups)


def is_one_type(specs: list[Spec]) -> bool:
    """Whether all layers need the same number of token slots, so that one group holds them."""
    first = specs[0]
    if first.form in FULL:
        return all(spec.form in FULL and spec.block_size == first.block_size for spec in specs)
    if first.form == "state":
        return all(
            spec.form == "state" and (spec.block_size, spec.page) == (first.block_size, first.page) for spec in specs
        )
    return all(
        (spec.form, spec.window, spec.block_size) == (first.form, first.window, first.block_size) for spec in specs
    )


def promoted(specs: list[Spec]) -> list[Spec] | None:
    """Every local layer as a full one, where there are full ones; None if that leaves more than one type.

    Full layers keep the window that they had, and without latents vLLM merges one window or chunk at the most
    (v1/kv_cache_interface.py:659).
    """
    if not specs or is_one_type(specs):
        return specs
    lengths = {form: {spec.window for spec in specs if spec.form == form} for form in _LOCAL}
    if any(len(each) > 1 for each in lengths.values()) and not any(spec.form == "latent" for spec in specs):
        return None
    if any(spec.form in FULL for spec in specs):
        # Windows over latents have a field that full latents lack, and 0.33.0 ends in a TypeError.
        if any(spec.form == "sliding latent" for spec in specs):
            return None
        size = next(spec.block_size for spec in specs if spec.form in FULL)
        specs = [
            replace(spec, form="full", window=0, block_size=size, padded_page=None) if spec.form in _LOCAL else spec
            for spec in specs
        ]
    return specs if is_one_type(specs) else None


def _unified(specs: list[Spec], rules: Rules) -> list[Spec] | None:
    """The specs with pages of one size: larger blocks where the page divides the largest, else padding."""
    largest = max(spec.page for spec in specs)
    unified: dict[Spec, Spec] = {}
    for spec in dict.fromkeys(specs):
        if spec.page == largest:
            unified[spec] = spec
        elif spec.form == "state" and rules.pads_states:
            unified[spec] = replace(spec, padded_page=largest)
        elif spec.form == "state":  # its page does not follow its block size
            return None
        elif largest % spec.page == 0:
            unified[spec] = replace(spec, block_size=spec.block_size * (largest // spec.page))
        elif spec.form != "latent" and rules.pads_attention:
            unified[spec] = replace(spec, padded_page=largest)
        else:
            return None
    return [unified[spec] for spec in specs]


def _packed(specs: list[Spec]) -> list[list[int]]:
    """Groups whose pages stand side by side in one block (_get_packed_kv_cache_groups).

    A bucket with as many layers of one page size as of another repeats a pattern of one layer of each, and is cut into
    groups of whole repeats; a bucket of another mixture stays one group. States, and windows where nothing repeats,
    are cut further, so that they do not widen the block that the others need anyway.
    """
    buckets: list[list[int]] = []
    for index, spec in enumerate(specs):
        for bucket in buckets:
            if is_one_type([specs[bucket[0]], spec]) and is_one_type([*(specs[at] for at in bucket), spec]):
                bucket.append(index)
                break
        else:
            buckets.append([index])
    by_page = [_by_page(specs, bucket) for bucket in buckets]
    balanced = [len({len(layers) for layers in pages.values()}) == 1 for pages in by_page]
    repeats = [max(map(len, pages.values())) for pages in by_page]
    floor = max(
        (times for times, pages, even in zip(repeats, by_page, balanced, strict=True) if even and len(pages) > 1),
        default=0,
    )
    unit = _closest([times for times, even in zip(repeats, balanced, strict=True) if even], floor) if floor else None
    counts = [
        ceil_div(times, unit) if unit is not None and even else 1 for times, even in zip(repeats, balanced, strict=True)
    ]
    yields = [
        specs[bucket[0]].form == "state" or (unit is None and specs[bucket[0]].form in _WINDOWED) for bucket in buckets
    ]
    anchor = max(
        _widest(pages, len(bucket) if splits else count)
        for pages, bucket, splits, count in zip(by_page, buckets, yields, counts, strict=True)
    )
    groups: list[list[int]] = []
    for bucket, pages, count, splits in zip(buckets, by_page, counts, yields, strict=True):
        parts = ceil_div(len(bucket), max(anchor // specs[bucket[0]].page, 1)) if splits else 1
        parts = max(parts, count)
        if parts == 1:
            groups.append(bucket)
            continue
        patterns = list(zip(*pages.values(), strict=False))
        groups += [[index for pattern in patterns[at::parts] for index in pattern] for at in range(parts)]
    return groups


def _in_tuples(model: str, specs: list[Spec], rules: Rules) -> Groups:
    """The groups of versions before 0.29: full layers in one, every window in groups of as many repeats.

    Source: vllm 0.22.0, 0.26.0 and 0.28.0 v1/core/kv_cache_utils.py (_get_kv_cache_groups_uniform_groups).
    """
    buckets: dict[tuple[Form, int, int], list[int]] = {}
    for index, spec in sorted(enumerate(specs), key=lambda each: each[1].form != "latent"):
        buckets.setdefault((spec.form, spec.block_size, spec.window), []).append(index)
    full = sorted({spec.page for spec in specs if spec.form == "latent"})
    if rules.packing != "overlaid":  # a window's page is padded to the next larger one of the full layers
        if not full or full[-1] < max(spec.page for spec in specs):
            raise UnsupportedError(f"vllm before 0.27 cannot pad the windows of {model} to a page of its full layers")
        specs = [replace(spec, padded_page=next(page for page in full if page >= spec.page)) for spec in specs]
    by_page = [_by_page(specs, bucket) for bucket in buckets.values()]
    repeats = [max(map(len, pages.values())) for pages in by_page]
    unit = _closest(repeats, repeats[0])
    groups: list[list[int]] = []
    for pages, times in zip(by_page, repeats, strict=True):
        parts = ceil_div(times, unit)
        patterns = list(zip(*pages.values(), strict=False))
        split = [[index for pattern in patterns[at::parts] for index in pattern] for at in range(parts)]
        groups += split if groups else [[index for layers in pages.values() for index in layers]]
    return Groups(specs, groups)


def _by_page(specs: list[Spec], bucket: list[int]) -> dict[int, list[int]]:
    pages: dict[int, list[int]] = {}
    for index in bucket:
        pages.setdefault(specs[index].page, []).append(index)
    return pages


def _widest(pages: dict[int, list[int]], count: int) -> int:
    """Bytes of the largest of ``count`` groups of a bucket."""
    return sum(ceil_div(len(layers), count) * page for page, layers in pages.items())


def _closest(values: list[int], least: int) -> int:
    """The size from ``least`` up to which rounding up every value adds the least; the largest of several.

    >>> _closest([21, 43, 20], 20)
    22
    """
    return min(
        range(least, max(values) + 1), key=lambda size: (sum(-value % size for value in values), -size), default=least
    )


def block_of(planned: Groups, held: set[int], packing: str = "") -> Counter[Spec]:
    """The pages of one block of the pool on a device that holds these layers: specs, and how many pages of each.

    They are the widest group's, unless the block has slots for all groups: of each size as many as the group with the
    most, or as many tuples of the first group's sizes as there are pages of one size in any group.
    """
    groups = [[planned.specs[index] for index in group if index in held] for group in planned.groups]
    if packing not in ("tuples", "slots"):
        return Counter(max(groups, key=lambda each: sum(spec.page for spec in each), default=[]))
    most: Counter[int] = Counter()
    for group in groups:
        most |= Counter(spec.page for spec in group)  # the larger of the two, size by size
    counted = groups[:1] if packing == "tuples" else groups
    first = {spec.page: spec for group in reversed(counted) for spec in group}
    return Counter({spec: most[page] if packing == "slots" else max(most.values()) for page, spec in first.items()})


def bytes_of(pages: Counter[Spec]) -> int:
    """Bytes of a block with so many pages of each spec."""
    return sum(count * spec.page for spec, count in pages.items())
