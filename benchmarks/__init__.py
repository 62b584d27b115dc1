"""Benchmarks: the naive reference, the workloads, the measuring and the reports.

    python -m benchmarks --help

``naive`` is both the baseline of every timing and the oracle of the parity tests; it does not know the engine.

    options, bars, report       what was asked for, what is held to, what is said
    illustration, drawing       the figure of a report
    measure, peaks, machine     seconds, bytes, and what they were measured on
    workloads, naive, oracle    models and prompts, the slow way, the same in float64
      taps, anatomy             ... one pass of it, and where each family keeps what it reads
    cost, compare, agreement    least work, relative errors, whether answers are right
    calls, timings              what is timed, and what the times are in proportion
    speed, accuracy, memory     a suite each
    scaling                     ... of growth
    startup (stages)            ... of whole processes
    peers (copies, peer_*)      ... of other libraries
    sets (set_tables)           ... of large sets of prompts
      batched, datasets         ... on a model in memory
      command_sets, launch      ... through the command line
    questions (trials)          ... of questions other than the default one
      masked_pass, answers      ... a forward under a mask, and whether they are answered right
    stream (streamed_runs)      ... of weights that are read layer by layer
      checkpoints               ... from files with random weights
    pages                       what a page of results weighs, and how fast it opens
    facts_map                   where the embedded model reads its facts, as text
    parity                      ... of every family with Hugging Face
      zoo, species              ... on tiny models, every term of them perturbed
    cuda (crowd)                ... of speed, memory and accuracy on a GPU
"""
