"""How a prompt's tokens are shared out: words first, then a token for each block of the picture."""

from dataclasses import dataclass

WORD_TOKENS = 29  # with begin and end


@dataclass(frozen=True)
class Grid:
    """Square blocks, so many in a row; those of the upper and lower eighth have no token."""

    columns: int

    @property
    def first_row(self) -> int:
        """The uppermost row that has tokens."""
        return self.columns // 8

    @property
    def rows(self) -> int:
        """Rows that have tokens."""
        return self.columns - 2 * self.first_row

    @property
    def tokens(self) -> int:
        """Length of a prompt."""
        return WORD_TOKENS + self.rows * self.columns
