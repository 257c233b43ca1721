"""What it learns: the U-Net, its training, its score, its registration."""
