"""What people get: maps, outlines, change, reports."""
