"""``ppar-dist`` with faults or delays that a test chooses.

``python -m tests.sabotage KIND=ARGUMENT,… … ARGUMENTS`` is ``ppar-dist ARGUMENTS`` with each sabotage in its
ranks; launchers are told to start this module for them. The hooks are what training calls in public: the
phase of a step that it tells its watchdog, a step, the loss, and the signals that it takes over.

| sabotage | what happens |
|---|---|
| ``hold=FILE`` | steps wait as FILE says (`pace.Pace`), until a signal asks the rank to end |
| ``pace=FILE`` | the same within the steps, which last longer, whatever is asked |
| ``fault=KIND,RANK,FILE`` | the rank hangs, fails or refuses once FILE is there (`faults`) |
| ``heard=FOLDER`` | each rank leaves a note in FOLDER when it has heard of steps of all others |
| ``poison=loss|gradient,FIRST,STOP`` | images at positions [FIRST, STOP) give what is not a number |
| ``flip=RANK,STEP`` | a bit of the rank's prototypes changes after the step |
| ``shards=STEP,DOMAIN,GONE,REWRITTEN`` | a shard is deleted and one is overwritten before the step's data |
"""
