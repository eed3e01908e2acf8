"""Files that cannot be lost: atomic writes, checksums, room on the disk."""
