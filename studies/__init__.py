"""The experiments of this book: phantoms with their generative rules, arms, evaluators, long runs,
and the running of the book.
"""
