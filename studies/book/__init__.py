"""Running the notebooks and building the book from them."""
