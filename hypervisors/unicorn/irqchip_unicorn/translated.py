"""Which guest code an engine has translated, and whether it is still what it was.

The emulator notices when its own guest writes to code. What another vCPU's engine or the host writes it does not
see, so each `run` begins with a look at the pages that were translated.
"""

from __future__ import annotations

from irqchip_unicorn.memory import PAGE_SIZE, GuestMemory

MOST_PAGES = 4096
MOST_BYTES = 32 << 20
"""When more pages than this have been translated, or blocks of more bytes, everything is translated anew."""


class TranslatedCode:
    """Copies of what was translated, by guest physical page."""

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self._pages: dict[int, tuple[memoryview, bytes]] = {}
        self._blocks: dict[int, dict[tuple[int, int], bytes]] = {}  # by page: offset and size, and bytes
        self._bytes = 0  # of the blocks; a guest can jump to each byte of a page

    def add(self, address: int, size: int) -> None:
        """A block within one page, at a guest physical address, is translated now."""
        page, offset = address - address % PAGE_SIZE, address % PAGE_SIZE
        view = self._memory.view(page, PAGE_SIZE)
        if view is None:
            return
        if page not in self._pages:
            self._pages[page] = (view, bytes(view))
        self._blocks.setdefault(page, {})[offset, size] = bytes(view[offset : offset + size])
        self._bytes += size

    def changed(self) -> bool:
        """Whether any translated byte is another one now, or too much is translated; then forget all."""
        stale = len(self._pages) > MOST_PAGES or self._bytes > MOST_BYTES
        for page, (view, copy) in self._pages.items():
            if (now := bytes(view)) != copy:  # a view itself compares byte by byte
                blocks = self._blocks[page].items()
                if any(now[offset : offset + size] != code for (offset, size), code in blocks):
                    stale = True
                    break
                self._pages[page] = (view, now)
        if stale:
            self.forget()
        return stale

    def forget(self) -> None:
        self._pages.clear()
        self._blocks.clear()
        self._bytes = 0
