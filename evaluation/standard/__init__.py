"""Standard evaluation on real data: zero-shot, retrieval, caption pairs, word order, few shots, linear probe, places.

For a command line:

    from evaluation.standard.specs import SPECS_HELP, task

    found = task("folder:photos,templates=7")        # ValueError: what was got, what is expected, where
    result = found.measure(encoder, progress=tell)   # evaluation.probe_results.ProbeResult

`task` reads lists of files and texts, but decodes no picture. `tell` is called with
`evaluation.suites.Step(probe, done, total)` as pictures and texts are encoded. A task has `.name` (its specification,
for files and tables) and `.key(encoder)`, the `RunKey` of its result, so that a stored result can be used again.
`evaluation.standard.asking.Task` is the protocol. A spec is `KIND:PATH[,option=value...]`:

    folder:PATH     zero-shot, a class is a sub-folder       templates=bare|1|7|80|own|all (all)
    captions:PATH   retrieval, both directions               images=FOLDER
    pairs:PATH      SugarCrepe or ARO files, or a folder     images=FOLDER
    order:PATH      word order of the captions (ARO)         images=FOLDER seed=N
    few-shot:PATH   base and new classes, 1 to 16 shots      templates=1 seed=N
    linear:PATH     logistic regression on frozen vectors    seed=N
    coco-instances:PATH  what is where, a COCO .json         images=FOLDER
    voc-seg:PATH    what is where, a folder as VOC's         split=NAME classes=FILE

`measure` raises ValueError for data that cannot be used (with the file's name) and ModuleNotFoundError where
scikit-learn is missing (few-shot, linear); errors of the encoder pass through.
"""
