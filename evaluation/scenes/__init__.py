"""Controlled pictures whose truth is known: sample a scene, draw it, say things about it, judge what is said."""
