"""Groups of pictures: who is ranked first by neutral queries, and whose labels are found."""
