"""The keys and values that generation looks back at.

What belongs to prompts is kept once for all samples of a prompt; what has been generated, in
blocks of positions, so that growing copies nothing and every product reads whole blocks.

A sample's slot in its blocks is the number of tokens it had generated, whoever its neighbours
are; prompts are padded to whole blocks of SIMD lanes. So sums run in the same order in any
company, and in float32 a sample is the same to the last bit.

Shapes: L layers, B samples, U entries (a prompt, for up to G samples), K key-value heads, E query
heads a key-value head, d head dimension, P positions of the longest prompt, W of a block.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from posttrain.engine.config import DecoderConfig

WIDTH = 32  # positions of a block
LANES = 16  # prompts are padded to a multiple of this: the float32 numbers of a register
SLACK = 1.5  # places of all entries, at most this many a sample
# Float32 products of fewer rows may sum in another order: MKL does so below two rows where there is
# AVX-512, and below four where there is AVX2 alone.
FEWEST = 4


class Cache:
    """Of the samples now being generated; `attend` is their mixing function."""

    def __init__(self, config: DecoderConfig, like: Tensor) -> None:
        self.narrow, self.dim = config.num_key_value_heads, config.head_dim
        self.group = config.num_attention_heads // self.narrow
        self.depth = config.num_hidden_layers
        self.device = like.device
        self.keys = like.new_zeros(self.depth, 0, self.dim, 0)  # (L, U * K, d, P)
        self.values = like.new_zeros(self.depth, 0, 0, self.dim)  # (L, U * K, P, d)
        self.uids = np.zeros(0, np.int64)  # (U,) which prompt an entry holds
        self.lengths = np.zeros(0, np.int64)  # (U,)
        self.prompts = np.zeros(0, np.int64)  # (B,) each sample's prompt
        self.made = 0  # prompts so far
        self.own_keys: list[Tensor] = []  # (L, B * K, d, W) each
        self.own_values: list[Tensor] = []  # (L, B * K, W, d) each
        self.arrange()

    @property
    def rows(self) -> int:
        return len(self.prompts)

    # Prompts and samples come and go ------------------------------------------------------

    def join(self, keys: Tensor, values: Tensor, lengths: np.ndarray, counts: np.ndarray) -> None:
        """Add prompts, and `counts` new samples of each.

        Args:
            keys, values: `(L, U, K, P, d)`, what a pass over the new prompts has found.
            lengths: `(U,)`, real positions of each; the rest is padding.
        """
        width = max(self.keys.shape[3], keys.shape[3])
        keys = keys.transpose(3, 4).flatten(1, 2)
        values = values.flatten(1, 2)
        self.keys = torch.cat((wider(self.keys, 3, width), wider(keys, 3, width)), 1)
        self.values = torch.cat((wider(self.values, 2, width), wider(values, 2, width)), 1)
        new = self.made + np.arange(len(lengths))
        self.made += len(lengths)
        self.uids = np.concatenate((self.uids, new))
        self.lengths = np.concatenate((self.lengths, lengths))
        self.prompts = np.concatenate((self.prompts, np.repeat(new, counts)))
        wanted = self.rows * self.narrow
        self.own_keys = [wider(block, 1, wanted) for block in self.own_keys]
        self.own_values = [wider(block, 1, wanted) for block in self.own_values]
        self.arrange()

    def keep(self, rows: np.ndarray, blocks: int) -> None:
        """Only these samples go on, and they have filled at most `blocks` blocks."""
        old, self.prompts = self.rows, self.prompts[rows]
        index = torch.from_numpy(rows).to(self.device)

        def chosen(block: Tensor) -> Tensor:
            split = block.unflatten(1, (old, self.narrow))
            return split.index_select(1, index).flatten(1, 2)

        self.own_keys = [chosen(block) for block in self.own_keys[:blocks]]
        self.own_values = [chosen(block) for block in self.own_values[:blocks]]
        self.arrange()

    def arrange(self) -> None:
        """Give every sample a place (entry, slot), such that entries are many and full."""
        uids, inverse, counts = np.unique(self.prompts, return_inverse=True, return_counts=True)
        self.fan = fan = self.fan_of(counts)
        copies = -(-counts // fan)
        firsts = np.concatenate(([0], np.cumsum(copies)))[:-1]
        order = np.argsort(inverse, kind="stable")
        ranks = np.empty(self.rows, np.int64)
        ranks[order] = np.arange(self.rows) - np.repeat(np.cumsum(counts) - counts, counts)
        places = (firsts[inverse] + ranks // fan) * fan + ranks % fan
        held = {uid: entry for entry, uid in reversed(list(enumerate(self.uids.tolist())))}
        source = np.repeat(np.array([held[uid] for uid in uids.tolist()], np.int64), copies)
        if not np.array_equal(source, np.arange(len(self.uids))):
            index = torch.from_numpy(source).to(self.device)

            def chosen(store: Tensor) -> Tensor:
                split = store.unflatten(1, (len(self.uids), self.narrow))
                return split.index_select(1, index).flatten(1, 2)

            self.keys, self.values = chosen(self.keys), chosen(self.values)
            self.uids, self.lengths = self.uids[source], self.lengths[source]
            width = round_up(int(self.lengths.max(initial=0)), LANES)
            self.keys = self.keys[..., :width].contiguous()
            self.values = self.values[:, :, :width].contiguous()
        self.places: Tensor | None = None  # (B,); None where they are 0, 1, 2 ...
        self.slots: Tensor | None = None  # (U * G,) the sample at each place, 0 where it is empty
        if len(source) * fan != self.rows or not np.array_equal(places, np.arange(self.rows)):
            slots = np.zeros(len(source) * fan, np.int64)
            slots[places] = np.arange(self.rows)
            self.places = torch.from_numpy(places).to(self.device)
            self.slots = torch.from_numpy(slots).to(self.device)
        lengths = torch.from_numpy(self.lengths[places // fan]).to(self.device)
        at = torch.arange(self.keys.shape[3], device=self.device)
        self.unseen = at >= lengths[:, None]  # (B, P)

    def fan_of(self, counts: np.ndarray) -> int:
        """G: as many samples an entry as leaves few places empty."""
        most = int(counts.max(initial=1))
        least = -(-FEWEST // self.group) if self.keys.dtype == torch.float32 else 1
        for fan in [most, *(2**power for power in range(12, 0, -1) if 2**power < most)]:
            if fan >= least and (-(-counts // fan) * fan).sum() <= SLACK * self.rows:
                return fan
        return least

    # One more position of every sample ----------------------------------------------------

    def open(self, slots: np.ndarray) -> None:
        """Prepare for a token of each sample, which becomes the `slots[b]`-th of its own."""
        while int(slots.max()) >= WIDTH * len(self.own_keys):
            shape = self.depth, self.rows * self.narrow
            self.own_keys.append(self.keys.new_zeros(*shape, self.dim, WIDTH))
            self.own_values.append(self.keys.new_zeros(*shape, WIDTH, self.dim))
        at = torch.arange(WIDTH * len(self.own_keys), device=self.device)
        own = at > torch.from_numpy(slots).to(self.device)[:, None]
        unseen = torch.cat((self.unseen, own), 1)[:, None, None]
        self.bias = torch.zeros(unseen.shape, dtype=self.keys.dtype, device=self.device)
        self.bias.masked_fill_(unseen, float("-inf"))
        # Where to write: (block, samples, slot), all samples and one slot as often as possible.
        self.targets: list[tuple[int, Tensor | None, int | Tensor]] = []
        if (slots == slots[0]).all():
            self.targets = [(int(slots[0]) // WIDTH, None, int(slots[0]) % WIDTH)]
            return
        for block in np.unique(slots // WIDTH):
            rows = np.flatnonzero(slots // WIDTH == block)
            index = torch.from_numpy(rows).to(self.device)
            places = torch.from_numpy(slots[rows] % WIDTH).to(self.device)
            self.targets.append((int(block), index, places))

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store k and v `(B, K, d)`, and mix for q `(B, H, d)`, scaled by 1 / sqrt(d)."""
        self.write(layer, k, v)
        rows, narrow, group, dim = self.rows, self.narrow, self.group, self.dim
        alone = q.reshape(rows * narrow, group, dim)
        q = alone.view(rows, narrow, group, dim)
        far = torch.bmm(self.together(q), self.keys[layer])  # (U * K, G * E, P)
        parts = [self.apart(far).view(rows, narrow, group, -1)]
        parts += [
            torch.bmm(alone, block[layer]).view(rows, narrow, group, WIDTH)
            for block in self.own_keys
        ]
        weights = torch.cat(parts, -1).add_(self.bias).softmax(-1)
        sizes = [self.keys.shape[3]] + [WIDTH] * len(self.own_keys)
        far, *near = weights.split(sizes, -1)
        mixed = self.apart(torch.bmm(self.together(far), self.values[layer]))
        mixed = mixed.reshape(rows * narrow, group, dim)
        for block, part in zip(self.own_values, near, strict=True):
            mixed = torch.baddbmm(mixed, part.reshape(rows * narrow, group, WIDTH), block[layer])
        return mixed.view(rows, narrow * group, dim)

    def together(self, x: Tensor) -> Tensor:
        """`(B, K, E, n)` by sample to `(U * K, G * E, n)` by entry."""
        if self.slots is None and self.fan == 1:
            return x.reshape(self.rows * self.narrow, self.group, -1)
        if self.slots is not None:
            x = x.index_select(0, self.slots)
        x = x.view(-1, self.fan, self.narrow, self.group, x.shape[-1]).transpose(1, 2)
        return x.reshape(-1, self.fan * self.group, x.shape[-1])

    def apart(self, x: Tensor) -> Tensor:
        """The way back from `together`."""
        if self.slots is None and self.fan == 1:
            return x
        x = x.view(-1, self.narrow, self.fan, self.group, x.shape[-1]).transpose(1, 2)
        x = x.reshape(-1, self.narrow, self.group, x.shape[-1])
        return x if self.places is None else x.index_select(0, self.places)

    def write(self, layer: int, k: Tensor, v: Tensor) -> None:
        for block, rows, slot in self.targets:
            keys = self.own_keys[block][layer].view(self.rows, self.narrow, self.dim, WIDTH)
            values = self.own_values[block][layer].view(self.rows, self.narrow, WIDTH, self.dim)
            if rows is None:
                keys[..., slot], values[:, :, slot] = k, v
            else:
                keys[rows, :, :, slot], values[rows, :, slot] = k[rows], v[rows]


def wider(x: Tensor, axis: int, size: int) -> Tensor:
    """`x` with zeros appended along an axis up to `size`."""
    missing = size - x.shape[axis]
    if not missing:
        return x
    shape = list(x.shape)
    shape[axis] = missing
    return torch.cat((x, x.new_zeros(shape)), axis)


def round_up(number: int, step: int) -> int:
    return -(-number // step) * step
