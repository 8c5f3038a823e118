"""Localisation judged: scenes, COCO instances and VOC segmentations, by points, areas, boxes and presence.

    from evaluation.dense.task import scenes_task, coco_task, voc_task

    result = scenes_task(seed=0).measure(encoder)     # evaluation.probe_results.ProbeResult

`encoder` is any `evaluation.encoder.DenseEncoder`: an artifact, a server, a checkpoint.
"""
