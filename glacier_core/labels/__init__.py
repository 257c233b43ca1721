"""What an expert says: inventories of outlines, burned into masks."""
