"""Magika's features: what its model wants of a file. README.md says the rule in words."""

SIDE = 1024  # tokens from each end
BLOCK = 4096  # bytes looked at from each end
PADDING = 256
BYTES_MIN = 8  # a file with fewer, leading whitespace aside, is not put before the model
WHITESPACE = b" \t\n\r\x0b\x0c"


def tokens(data):
    """The 2048 tokens of a file, or None for one that is too small to judge."""
    head = data[:BLOCK].lstrip(WHITESPACE)[:SIDE]
    tail = data[-BLOCK:].rstrip(WHITESPACE)[-SIDE:]
    if len(head) < BYTES_MIN:
        return None
    return [*head, *[PADDING] * (SIDE - len(head)), *[PADDING] * (SIDE - len(tail)), *tail]
