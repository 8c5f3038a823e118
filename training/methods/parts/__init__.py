"""Helpers that methods share; nothing here is a method."""
