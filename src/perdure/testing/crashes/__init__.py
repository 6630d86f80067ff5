"""The crash tester of people's own flows (X5): their flow in child processes, killed at its durable points.

    said.py      what is said between parent and children, and what lives write down before they die
    life.py      in the child: one life, with a store that dies at a point, a clock that does not wait, a witness
    effects.py   in the child: what the flow does to the world outside of its steps, as far as Python tells
    server.py    in the child: loads the flow once and forks a life for each order, where that is safe
    nursery.py   in the parent: the servers, each with another order of sets; ends everything that was started
    course.py    in the parent: one run from its beginning to its end, over as many lives as it takes
    judge.py     what must be true of a run that was killed, told from its journals and the witness
    report.py    what was found, for people and for programs
    trial.py     which points, how often, in which order

A verdict is drawn from facts only: the journal before the kill and after the end, and a witness file that every life
appends to with single writes, which SIGKILL does not undo. Outputs of steps may rightly be others in every execution
(a model, a clock read in a step), so results are compared only where nothing of the kind can explain a difference: with
a run that was not killed, if two of these agreed in everything; and with what a life was about to record as its result
when it was killed.

Rejected: stubs that hand recorded outputs to steps which have to be executed again (bodies shall run, and what they
leave in the process is what is tested); patched clocks and random numbers (datetime is not to be patched, and what they
change shows in arguments and results anyway); kills at random moments (the moment before and the moment after each
record differ in what is known, and nothing else does).
"""
