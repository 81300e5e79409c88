"""Files: model archives, atomic writes, progress bars."""
