"""Label sets taught by example: a closed-form head of stored image vectors, judged by leaving one out."""
