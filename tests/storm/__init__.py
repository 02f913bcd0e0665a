"""The storm: seeded attacks on every command, one after the other, and a table of what came of them.

    python -m tests.storm --minutes 30 --seed 7      as long as that, every kind of attack
    python -m tests.storm --seed 7 --attack 117      one attack of that storm again, told in full
    python -m tests.storm --minutes 30 --processes 2 two storms beside each other, and one table

What must hold, whatever is done to a command or to what it left: it ends with the bytes that it would have ended with
undisturbed, or it refuses in one line. A silent change, a traceback, a hang or a memory that grows is a defect.

ground.py       what is attacked: a folder with a model, data and runs      kill.py         SIGKILL, SIGTERM, SIGSTOP
stages.py       the commands, and what must be the same of what each leaves corruption.py   of every file that is left
inputs.py       what the ground begins with; server.py: teacher and judge   full_disk.py    a disk that is too small
execution.py    a command as a process, and how it ended                    hostile.py      files made to harm
running.py      attacks one after the other; outcome.py: what came of one
"""
