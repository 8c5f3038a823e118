"""Models as torch modules: towers, trunks, dense towers, and the first layer that takes uint8 pixels."""
