"""What a frame says: geometry, conditions (total charge, field, data of single atoms), labels, neighbours."""
