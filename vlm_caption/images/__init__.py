"""Opens images in one way, `opening.open_image`, from files, URLs, bytes and arrays; finds images in folders."""
