#!/usr/bin/env bash
# Time-LLM with TAPR and GRA-M on ETTh1. Every setting is an environment variable:
#
#   bash scripts/TimeLLM_ETTh1_enhanced.sh
#   USE_GRAM=0 N_SCALES=4 bash scripts/TimeLLM_ETTh1_enhanced.sh
#   bash scripts/TimeLLM_ETTh1_enhanced.sh --preset cpu --max_steps 50     (further flags go at the end)
#
# To keep a setting, write it below the table, e.g. LLM_LAYERS=6. PRINT_COMMAND=1 shows the command
# and runs nothing.
#
# variable          default             flag and meaning
# PROJECT           (this checkout)     folder that relative paths are counted from
# DATA              ETTh1               --data, the data set
# ROOT_PATH         ./dataset/ETT-small --root_path, folder of the data file
# CHECKPOINTS       ./checkpoints       --checkpoints, folder of the run folders
# LOG_DIR           logs                folder of the log files
# COMMENT           run                 --model_comment, last part of the run folder's name
#
# LLM_MODEL         auto                --llm_model: GPT2, SMOLLM2, LLAMA, QWEN, BERT, auto or a hub id
# LLM_PATH          -                   --llm_model_path, a local folder or GGUF file
# LLM_LAYERS        12                  --llm_layers (6 for 6 GB of GPU memory)
#
# SEQ_LEN           512                 --seq_len, lookback window
# LABEL_LEN         48                  --label_len, decoder start (encoder-decoder models only)
# PRED_LEN          96                  --pred_len, horizon
# BATCH             32                  --batch_size (8 for 6 GB of GPU memory)
# D_MODEL           64                  --d_model, width of a patch embedding
# D_FF              128                 --d_ff, width per reprogramming head
# N_HEADS           8                   --n_heads, heads of the reprogramming attention
# TRAIN_EPOCHS      50                  --train_epochs, at most
# PATIENCE          15                  --patience, validations without improvement
# LEARNING_RATE     0.0005              --learning_rate
# DROPOUT           0.15                --dropout
#
# USE_TAPR          1                   --use_tapr: 1 on, 0 off
# N_SCALES          3                   --n_scales: try 2, 3, 4
# LAMBDA_TREND      0.5                 --lambda_trend: try 0.3, 0.5, 0.7
#
# USE_GRAM          1                   --use_gram: 1 on, 0 off
# TOP_K             -                   --top_k: try 3, 5, 10
# LAMBDA_RETRIEVAL  0.3                 --lambda_retrieval: try 0.2, 0.3, 0.5
# BUILD_MEMORY      1                   --build_memory (left out without GRA-M, and when resuming)
# D_REPR            128                 --d_repr, width of the learned retrieval key
#
# SAVE_STEPS        -                   --save_steps, steps between step checkpoints (0: none)
# SAVE_TOTAL_LIMIT  3                   --save_total_limit, step checkpoints kept (0: all)
# RESUME_FROM       -                   --resume_from_checkpoint: a file, a folder, or auto
# RESUME_COUNTER    -                   --resume_counter, early-stopping counter to go on with
# SEED              2021                --seed
# DETERMINISTIC     0                   --deterministic: 1 on, 0 off
#
# Processes, GPUs and machines (NUM_PROCESSES, NNODES ...): see scripts/launch.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/train.sh"

add_values "${SHARED_FLAGS[@]}"
add_switch DETERMINISTIC "" deterministic
add_modules "$@"
run_logged run_main_enhanced.py TimeLLM_ETTh1_enhanced "$@"
