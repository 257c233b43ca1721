"""What a scene is: grids, bands, validity."""
