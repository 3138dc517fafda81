"""Constructs the text encoder: a CLIPTextModel of one layer whose last tokens hold the cells of the drawings.

Nothing of it is trained. A thing in a style has a token for each quadrant of its drawing, whose embedding is
the quadrant's code: its coordinates in the principal components of that quadrant of all drawings. A prompt is
padded to LENGTH tokens, and each of the last ones stands for one cell of one box (`scenes.BOXES`):

- Self-attention copies the code of its quadrant of the first, last or second thing to it (`_set_attention`).
- The neurons of the MLP that belong to its cell decode the code to the cell's latents and coverage. All
  others are switched off by a large negative input (`_set_mlp`).
- A word such as `2 left`, which all cells attend to as well, changes their columns or rows (`_set_shifts`).

Some dimensions give all inputs of a layer norm the mean 0 and the same norm, so that it only scales.
All numbers of the embeddings and matrices are stored in 8 bits, so these dimensions also take what rounding leaves.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from canvas.training.assets import SpriteSet
from canvas.training.config import GRAY, PATCH_SIZE
from canvas.training.latents import SCALING_FACTOR, LatentBasis
from canvas.training.recolour import RECOLOURS
from canvas.training.scenes import BOX_CELLS, BOXES, resize_to_box, to_pixels
from canvas.training.tokenizer import (
    DOWN_SHIFTS,
    NUM_QUADRANTS,
    NUM_SPECIAL_TOKENS,
    RIGHT_SHIFTS,
    SHIFTS,
    WORDS,
    TokenTable,
)

WORD_TOKENS = 20  # positions of a prompt for words, begin and end tokens included
HEAD_SIZE = 64
SHIFT_HEADS = 2  # the last ones, which no code reaches
# For the tokens that a head is for, and less for the first, which it attends to if there are none
QUERY_BIAS = (600 * math.sqrt(HEAD_SIZE), 300 * math.sqrt(HEAD_SIZE))  # attention divides by the root
SLOT_CODE_SIZE = 24
BALANCE_SIZE = 7  # numbers that fix mean and norm, of a code and of an embedding
SMALL_WEIGHT = 0.25  # exponent of the area by which drawings that cover little count more
GRID = 16  # cells per side of an image
MAX_OVERLAP = 10  # of two slot codes
FIRST_NORM, LAYER_NORM_SCALE = 7.5, 8.0  # what the two layer norms divide by, both exact in 8 bits
SWITCH = 32.0  # added to the outputs of the MLP's active neurons, more than they differ from 0
THINGS = ("first", "last", "second")  # of a prompt, that a box can show
# Positions of the words that tell layouts apart: the first, that behind one thing and that behind it
LAYOUT_POSITIONS = (1, 1 + NUM_QUADRANTS, 2 + NUM_QUADRANTS)
SECOND_THING = slice(2 + NUM_QUADRANTS, 2 + 2 * NUM_QUADRANTS)  # its positions after "fox ," and "fox and"

# First decoder row of each size, and the rows of all sizes.
FIRST_ROW: dict[str, int] = {}
NUM_ROWS = 0
for _size, _cells in BOX_CELLS.items():
    FIRST_ROW[_size] = NUM_ROWS
    NUM_ROWS += _cells**2
# The quadrant of a drawing that each decoder row shows.
QUADRANTS = torch.tensor(
    [
        2 * (2 * row // cells) + 2 * column // cells
        for cells in BOX_CELLS.values()
        for row in range(cells)
        for column in range(cells)
    ]
)
PLACE_SIZE = 2 * GRID + len(BOXES)
LENGTH = WORD_TOKENS + sum(box.cells**2 for box in BOXES)


class Dimensions:
    """Where in the hidden state each quantity is."""

    def __init__(self, code: int, output: int) -> None:
        self.code, self.output = code, output  # the latter for latents and coverage of a cell
        # Two pairs of large numbers that fix the norm, and three numbers that fix the mean
        self.balance = code + output
        # 1 for tokens of things; the next is 1 for the first token, which empty prompts attend to
        self.is_thing = self.balance + BALANCE_SIZE
        self.is_second = self.is_thing + 2  # 1 at the positions of the second thing
        self.quadrant = self.is_second + 1  # 1 for the quadrant of a thing's token
        self.shown_quadrant = self.quadrant + NUM_QUADRANTS  # 1 for the quadrant that a cell is in
        # Which shift a token is, one number that is 1, and a copied one; the last takes away the mean
        self.shift = self.shown_quadrant + NUM_QUADRANTS
        self.layout_position = self.shift + len(SHIFTS) + 1  # 1 at each of LAYOUT_POSITIONS
        self.order = self.layout_position + len(LAYOUT_POSITIONS)  # the position of a word, 0 to 1
        self.query = self.order + 1  # which thing a cell shows, one of THINGS
        self.slot = self.query + len(THINGS)  # the code of the cell's decoder rows
        # Column, row and box of the cell, one number each that is 1; the denoiser finds cells by them
        self.place = self.slot + SLOT_CODE_SIZE
        # The hidden size, a multiple of the heads' size
        self.total = -(-(self.place + PLACE_SIZE) // HEAD_SIZE) * HEAD_SIZE
        # What a code adds to the squared norm of a cell between the two layer norms
        self.squared_norm = (LAYER_NORM_SCALE**2 - FIRST_NORM**2) * self.total


@dataclass(frozen=True)
class DrawingCodes:
    """`codes` [drawings, NUM_QUADRANTS, code] and `decoder` [NUM_ROWS, output, code], each row for its quadrant."""

    codes: torch.Tensor
    decoder: torch.Tensor
    explained: float  # share of the drawings' variance

    @classmethod
    def load(cls, work: Path) -> "DrawingCodes":
        """The codes of a work folder."""
        return cls(**torch.load(work / "codes.pt", weights_only=True))

    def save(self, work: Path) -> None:
        """Write `codes.pt`."""
        torch.save(vars(self), work / "codes.pt")

    @property
    def dimensions(self) -> Dimensions:
        """The layout of the hidden state."""
        return Dimensions(self.codes.shape[2], self.decoder.shape[1])

    def cells(self) -> torch.Tensor:
        """What the decoder gives for all drawings: [drawings, NUM_ROWS, output], half precision."""
        cells = torch.zeros(len(self.codes), *self.decoder.shape[:2], dtype=torch.half)
        for quadrant in range(NUM_QUADRANTS):
            rows = torch.eq(QUADRANTS, quadrant)
            cells[:, rows] = torch.einsum("nk,rok->nro", self.codes[:, quadrant], self.decoder[rows]).half()
        return cells


def to_8_bits(values: torch.Tensor) -> torch.Tensor:
    """Rounded to what float8 e4m3 can store, 448 at most."""
    return values.to(torch.float8_e4m3fn).to(values.dtype)


def _without_sum(rows: torch.Tensor) -> torch.Tensor:
    """Three numbers of 8 bits for each row that make its sum 0, nearly: a layer norm subtracts the mean."""
    numbers, rest = [], -rows.sum(1)
    for _ in range(3):
        numbers.append(to_8_bits(rest))
        rest = rest - numbers[-1]
    return torch.stack(numbers, 1)


def _with_norm(codes: torch.Tensor, squared_norm: float) -> torch.Tensor:
    """Codes with BALANCE_SIZE more numbers of 8 bits: their sums are 0 and their norms those given, nearly."""
    codes = torch.cat([codes, _without_sum(codes)], 1)
    for factor in (0.94, 1):  # of numbers that would be rounded up; the second pair takes what is left
        root = ((squared_norm - codes.square().sum(1)).clamp(min=0) / 2).sqrt()
        pair = torch.where(to_8_bits(root) > root, to_8_bits(root * factor), to_8_bits(root))
        codes = torch.cat([codes, pair[:, None], -pair[:, None]], 1)
    return codes


def drawing_cells(sprites: SpriteSet, basis: LatentBasis) -> torch.Tensor:
    """Change of the components by each drawing on gray, and its coverage: [drawings, NUM_ROWS, channels + 1]."""
    return torch.cat([_cells_at_size(sprites.images, basis, cells) for cells in BOX_CELLS.values()], 1)


def _cells_at_size(images: list[Image.Image], basis: LatentBasis, cells: int, batch: int = 64) -> torch.Tensor:
    side = cells * PATCH_SIZE
    parts = []
    for start in range(0, len(images), batch):
        canvases, masks = [], []
        for sprite in images[start : start + batch]:
            resized, left, top = resize_to_box(sprite, cells)
            image, mask = Image.new("RGB", (side, side), (GRAY,) * 3), Image.new("L", (side, side))
            image.paste(resized, (left, top), resized)
            mask.paste(255, (left, top), resized)
            canvases.append(np.asarray(image))
            masks.append(np.asarray(mask))
        gray = to_pixels(np.full((1, side, side, 3), GRAY, np.uint8))
        change = (basis.encode(to_pixels(np.stack(canvases))) - basis.encode(gray)) / basis.gain[:, None, None]
        alpha = torch.from_numpy(np.stack(masks)).float()[:, None] / 255
        coverage = 4 * torch.nn.functional.avg_pool2d(alpha, PATCH_SIZE)
        parts.append(torch.cat([change, coverage], 1).flatten(2).transpose(1, 2).half())
    return torch.cat(parts)


def encode_drawings(cells: torch.Tensor, basis: LatentBasis, code_size: int) -> DrawingCodes:
    """The codes of drawings by the principal components of the cells of each quadrant.

    The last dimensions of a code are there for its mean 0 and the norm that all codes have.
    """
    weights = cells[..., -1].float().mean(1).clamp(min=0.01).pow(-SMALL_WEIGHT)[:, None]
    squared_norm = Dimensions(code_size, cells.shape[2]).squared_norm
    codes, decoder = [], torch.zeros(NUM_ROWS, cells.shape[2], code_size)
    explained = total = 0.0
    for quadrant in range(NUM_QUADRANTS):
        rows = torch.eq(QUADRANTS, quadrant)
        flat = cells[:, rows].flatten(1).float()
        covariance = ((flat * weights).T @ (flat * weights)).double()
        components = torch.linalg.eigh(covariance)[1].flip(1)[:, : code_size - BALANCE_SIZE].float()
        part = flat @ components
        explained += float(part.square().sum())
        total += float(flat.square().sum())
        scale = math.sqrt(float((part.square().sum(1) + part.sum(1).square()).max()) / (0.9 * squared_norm))
        padding = code_size - components.shape[1]
        decoder[rows] = torch.nn.functional.pad(components * scale, (0, padding)).reshape(-1, *decoder.shape[1:])
        part = torch.nn.functional.pad(part / scale, (0, padding - BALANCE_SIZE))
        codes.append(_with_norm(to_8_bits(part), squared_norm))
    to_latents = torch.cat([basis.gain * SCALING_FACTOR, torch.ones(1)])
    return DrawingCodes(torch.stack(codes, 1), decoder * to_latents[None, :, None], explained / total)


def _slot_codes() -> torch.Tensor:
    """Signs [NUM_ROWS, 24], any two of which agree in few places more than they differ in."""
    generator = torch.Generator().manual_seed(5)
    found = torch.zeros(0, SLOT_CODE_SIZE)
    while len(found) < NUM_ROWS:
        code = torch.randint(0, 2, (SLOT_CODE_SIZE,), generator=generator).float() * 2 - 1
        if not len(found) or float((found @ code).max()) <= MAX_OVERLAP:
            found = torch.cat([found, code[None]])
    return found


def word_vectors(size: int) -> torch.Tensor:
    """What the denoiser sees of each word but the special tokens, [words, size]; nothing of shifts.

    Turns of the hue lie on a circle, so that it can learn all of them at once.
    """
    generator = torch.Generator().manual_seed(3)
    own = len(WORDS) - NUM_SPECIAL_TOKENS - len(RECOLOURS) - len(SHIFTS)
    vectors = torch.randn(own, size, generator=generator)
    circle = torch.randn(3, size, generator=generator)
    others = []
    for word in RECOLOURS:
        angle = math.radians(int(word.removeprefix("hue ")))
        others.append(circle[0] + 1.5 * (math.cos(angle) * circle[1] + math.sin(angle) * circle[2]))
    return to_8_bits(torch.cat([vectors, torch.stack(others), torch.zeros(len(SHIFTS), size)]))


def token_embeddings(codes: DrawingCodes, table: TokenTable) -> torch.Tensor:
    """One row per token of the tokenizer, without the balance."""
    at = codes.dimensions
    embeddings = torch.zeros(len(table.tokens), at.total)
    embeddings[0, at.is_thing + 1] = 1
    embeddings[:1, : at.code] = _with_norm(torch.zeros(1, at.code - BALANCE_SIZE), at.squared_norm)
    words = word_vectors(at.output)
    for row, source in enumerate(table.sources):
        if source.drawing is not None:
            embeddings[row, : at.code] = codes.codes[source.drawing, source.quadrant]
            embeddings[row, at.is_thing] = embeddings[row, at.quadrant + source.quadrant] = 1
        elif WORDS[source.word] in SHIFTS:
            embeddings[row, at.shift + SHIFTS.index(WORDS[source.word])] = 1
        elif source.word >= NUM_SPECIAL_TOKENS:
            embeddings[row, at.code : at.code + at.output] = words[source.word - NUM_SPECIAL_TOKENS]
    return embeddings


def position_embeddings(at: Dimensions) -> torch.Tensor:
    """One row per position, without the balance."""
    embeddings = torch.zeros(LENGTH, at.total)
    embeddings[:WORD_TOKENS, at.order] = torch.arange(WORD_TOKENS) / WORD_TOKENS
    embeddings[SECOND_THING, at.is_second] = 1
    for index, word in enumerate(LAYOUT_POSITIONS):
        embeddings[word, at.layout_position + index] = 1
    slot_codes = _slot_codes()
    position = WORD_TOKENS
    for index, box in enumerate(BOXES):
        for row in range(box.cells):
            for column in range(box.cells):
                embedding = embeddings[position]
                decoder_row = FIRST_ROW[box.size] + row * box.cells + column
                embedding[at.query + THINGS.index(box.thing)] = 1
                embedding[at.shown_quadrant + QUADRANTS[decoder_row]] = 1
                embedding[at.slot : at.slot + SLOT_CODE_SIZE] = slot_codes[decoder_row]
                embedding[at.place + box.left + column] = 1
                embedding[at.place + GRID + box.top + row] = 1
                embedding[at.place + 2 * GRID + index] = 1
                position += 1
    return embeddings


def _balance(tokens: torch.Tensor, positions: torch.Tensor, at: Dimensions) -> None:
    """Make every sum of a token, in 8 bits, and a position have mean 0 and the norm of the first layer norm, nearly."""
    squared_norm = FIRST_NORM**2 * at.total
    pairs = (at.balance, at.balance + 2)
    positions[:, at.balance + 4] = -positions.sum(1)
    large = ((squared_norm - positions.square().sum(1)) / 4).sqrt().half()
    tokens.copy_(to_8_bits(tokens))
    tokens[:, at.balance + 4 : at.is_thing] = _without_sum(tokens)
    for pair in pairs:
        positions[:, pair], positions[:, pair + 1] = large, -large
    mean_large = math.sqrt(squared_norm / 4)
    for pair in pairs:  # the second takes what rounding the first leaves
        excess = tokens.square().sum(1) + 4 * mean_large * tokens[:, pairs].sum(1)
        change = to_8_bits((mean_large**2 - excess / 2).sqrt() - mean_large)
        tokens[:, pair], tokens[:, pair + 1] = change, -change


@torch.no_grad()
def build_text_encoder(codes: DrawingCodes, table: TokenTable) -> CLIPTextModel:
    """The text encoder for the tokens of the table."""
    at = codes.dimensions
    model = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(table.tokens),
            hidden_size=at.total,
            intermediate_size=NUM_ROWS * at.output + 1 + len(_moves()),
            num_hidden_layers=1,
            num_attention_heads=at.total // HEAD_SIZE,
            max_position_embeddings=LENGTH,
            hidden_act="quick_gelu",
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    ).eval()
    for parameter in model.parameters():
        parameter.zero_()
    parameters = {name.removeprefix("text_model."): value for name, value in model.named_parameters()}
    tokens, positions = token_embeddings(codes, table), position_embeddings(at)
    _balance(tokens, positions, at)
    parameters["embeddings.token_embedding.weight"].copy_(tokens)
    parameters["embeddings.position_embedding.weight"].copy_(positions)
    layer = {name.removeprefix("encoder.layers.0."): value for name, value in parameters.items()}
    layer["layer_norm1.weight"].fill_(1)
    layer["layer_norm2.weight"].fill_(1)
    _set_attention(layer, at)
    _set_mlp(layer, at, codes.decoder)
    _set_shifts(layer, at)
    final = layer["final_layer_norm.weight"]
    final[at.code : at.code + at.output] = LAYER_NORM_SCALE
    final[at.layout_position :] = LAYER_NORM_SCALE
    final[at.order] = 0
    return model


def _set_attention(layer: dict[str, torch.Tensor], at: Dimensions) -> None:
    """Every token attends to the thing and quadrant that it asks for; to the first token if the prompt has none."""
    query, key, value, out = (layer[f"self_attn.{name}_proj.weight"] for name in ("q", "k", "v", "out"))
    bias = layer["self_attn.q_proj.bias"]
    scale = FIRST_NORM
    large = 384.0  # the largest numbers of 8 bits end at 448
    for head in range(at.total // HEAD_SIZE - SHIFT_HEADS):
        base = head * HEAD_SIZE
        key[base, at.is_thing] = key[base + 1, at.is_thing + 1] = scale
        bias[base], bias[base + 1] = QUERY_BIAS
        key[base + 2, at.order] = 32 * scale
        query[base + 2, at.query], query[base + 2, at.query + 1] = -large, large
        key[base + 3, at.is_second] = 16 * scale
        query[base + 3, at.query + 2] = large
        for quadrant in range(NUM_QUADRANTS):
            key[base + 4 + quadrant, at.quadrant + quadrant] = 48 * scale
            query[base + 4 + quadrant, at.shown_quadrant + quadrant] = large
    for row in range(at.code):
        value[row, row] = scale
        out[row, row] = 1


def _set_mlp(layer: dict[str, torch.Tensor], at: Dimensions, decoder: torch.Tensor) -> None:
    """Decode the code at the cells; the last neuron takes away again what switches the active ones on."""
    last = NUM_ROWS * at.output
    inner, bias, outer = layer["mlp.fc1.weight"], layer["mlp.fc1.bias"], layer["mlp.fc2.weight"]
    inner[:last, : at.code] = decoder.reshape(-1, at.code) * LAYER_NORM_SCALE
    select = _slot_codes() * (SWITCH * 6 / SLOT_CODE_SIZE) * LAYER_NORM_SCALE
    inner[:last, at.slot : at.slot + SLOT_CODE_SIZE] = select.repeat_interleave(at.output, 0)
    bias[: last + 1] = -5 * SWITCH
    for row in range(at.output):
        outer[at.code + row, row : last : at.output] = 1
    # Four of these are 1 at each cell
    inner[last, at.query : at.slot] = inner[last, at.place : at.place + PLACE_SIZE] = 6 * SWITCH * LAYER_NORM_SCALE / 4
    outer[at.code : at.code + at.output, last] = -1


def _moves() -> list[tuple[int, int, int]]:
    """A shift and, of the place, the column or row that it starts and ends at; for all that stay in the image."""
    sides = ((0, RIGHT_SHIFTS), (GRID, DOWN_SHIFTS))
    return [
        (SHIFTS.index(word), start + cell, start + cell + cells)
        for start, shifts in sides
        for word, cells in shifts.items()
        for cell in range(GRID)
        if 0 <= cell + cells < GRID
    ]


def _set_shifts(layer: dict[str, torch.Tensor], at: Dimensions) -> None:
    """The last heads copy the shifts of the prompt to all cells; a neuron for each of `_moves` obeys them."""
    key, value, out = (layer[f"self_attn.{name}_proj.weight"] for name in ("k", "v", "out"))
    bias = layer["self_attn.q_proj.bias"]
    for number, shifts in enumerate((RIGHT_SHIFTS, DOWN_SHIFTS), at.total // HEAD_SIZE - SHIFT_HEADS):
        base = number * HEAD_SIZE
        bias[base], bias[base + 1] = QUERY_BIAS
        key[base + 1, at.is_thing + 1] = FIRST_NORM  # the first token, if the prompt has no shift
        for index, word in enumerate(shifts):
            column = at.shift + SHIFTS.index(word)
            key[base, column] = FIRST_NORM
            value[base + index, column], out[column, base + index] = FIRST_NORM, 1
            value[base + len(shifts), column] = -FIRST_NORM
        out[at.shift + len(SHIFTS), base + len(shifts)] = 1
    inner, bias, outer = layer["mlp.fc1.weight"], layer["mlp.fc1.bias"], layer["mlp.fc2.weight"]
    for neuron, (shift, start, end) in enumerate(_moves(), len(bias) - len(_moves())):
        inner[neuron, at.shift + shift] = inner[neuron, at.place + start] = SWITCH * LAYER_NORM_SCALE
        inner[neuron, at.place + 2 * GRID : at.place + PLACE_SIZE] = SWITCH * LAYER_NORM_SCALE  # only cells have a box
        bias[neuron] = -2.5 * SWITCH
        outer[at.place + start, neuron], outer[at.place + end, neuron] = -2 / SWITCH, 2 / SWITCH


def compress_weights(folder: Path) -> None:
    """Store all matrices but the positions in 8 bits, all else in 16."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    for name, weight in weights.items():
        is_matrix = weight.ndim == 2 and "position_embedding" not in name
        weights[name] = weight.to(torch.float8_e4m3fn if is_matrix else torch.float16).contiguous()
    save_file(weights, path, metadata={"format": "pt"})


class PromptEmbeddings:
    """The encoder's output for scenes, without running it: much faster in training."""

    def __init__(self, codes: DrawingCodes, cells: torch.Tensor) -> None:
        self._at = codes.dimensions
        self._cells = torch.cat([cells, torch.zeros_like(cells[:1])])  # the last row for no drawing
        self._words = torch.cat([torch.zeros(NUM_SPECIAL_TOKENS, self._at.output), word_vectors(self._at.output)])
        self._positions = position_embeddings(self._at)
        boxes = [(index, row) for index, box in enumerate(BOXES) for row in range(box.cells**2)]
        self._boxes = torch.tensor([index for index, _ in boxes])
        self._rows = torch.tensor([FIRST_ROW[BOXES[index].size] + row for index, row in boxes])

    def __call__(self, words: torch.Tensor, drawings: torch.Tensor, shifts: torch.Tensor) -> torch.Tensor:
        """Embeddings [n, LENGTH, total] of words [n, WORD_TOKENS], 2 (unknown) for things, and drawings [n, boxes].

        A drawing of -1 is none. The cells are shifted to the right and down by `shifts` [n, 2].
        """
        at = self._at
        hidden = self._positions[None].repeat(len(words), 1, 1)
        output = slice(at.code, at.code + at.output)
        hidden[:, :WORD_TOKENS, output] += self._words[words]
        hidden[:, WORD_TOKENS:, output] += self._cells[drawings[:, self._boxes], self._rows].float()
        for axis in range(2):
            place = slice(at.place + axis * GRID, at.place + (axis + 1) * GRID)
            start = self._positions[WORD_TOKENS:, place].argmax(1)
            end = start + shifts[:, axis, None]
            end = torch.where((end >= 0) & (end < GRID), end, start)
            hidden[:, WORD_TOKENS:, place] = torch.nn.functional.one_hot(end, GRID).float()
        # What the final layer norm does: before the MLP added the output, all tokens have one norm and mean 0
        values = hidden[:, WORD_TOKENS:, output]
        mean = values.sum(-1, keepdim=True) / at.total
        variance = LAYER_NORM_SCALE**2 + values.square().sum(-1, keepdim=True) / at.total - mean.square()
        weight = torch.zeros(at.total)
        weight[output] = weight[at.layout_position :] = LAYER_NORM_SCALE
        weight[at.order] = 0
        hidden[:, WORD_TOKENS:] = (hidden[:, WORD_TOKENS:] - mean) * LAYER_NORM_SCALE / variance.sqrt()
        return hidden * (weight / LAYER_NORM_SCALE)
