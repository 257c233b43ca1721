"""Change between two dates: `comparing` two `sides`."""
