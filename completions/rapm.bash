# bash completion for rapm; made by: python -m rapm_cli.cli.completion completions
_rapm() {
    local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" command="${COMP_WORDS[1]}"
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "distill generate eval export inspect --help --version" -- "$word"))
        return
    fi
    case "$before" in
        --against) COMPREPLY=($(compgen -W "$(_rapm_runs)" -- "$word") $(compgen -f -- "$word")); return ;;
        --base) COMPREPLY=($(compgen -W "demo sdxl sd15" -- "$word") $(compgen -f -- "$word")); return ;;
        --clip-model) COMPREPLY=($(compgen -f -- "$word")); return ;;
        --config) COMPREPLY=($(compgen -f -- "$word")); return ;;
        --device) COMPREPLY=($(compgen -W "auto cpu cuda mps" -- "$word")); return ;;
        --discriminator) COMPREPLY=($(compgen -W "unet unet-mid latent" -- "$word")); return ;;
        --discriminator-times) COMPREPLY=($(compgen -W "slot edge all" -- "$word")); return ;;
        --discriminators) COMPREPLY=($(compgen -W "both relative absolute none" -- "$word")); return ;;
        --dtype) COMPREPLY=($(compgen -W "base fp16 bf16 fp32" -- "$word")); return ;;
        --format) COMPREPLY=($(compgen -W "diffusers kohya diffusers,kohya" -- "$word")); return ;;
        --from) COMPREPLY=($(compgen -f -- "$word")); return ;;
        --inception) COMPREPLY=($(compgen -f -- "$word")); return ;;
        --lora) COMPREPLY=($(compgen -W "$(_rapm_runs)" -- "$word") $(compgen -f -- "$word")); return ;;
        --lora-init) COMPREPLY=($(compgen -W "kaiming gaussian" -- "$word")); return ;;
        --method) COMPREPLY=($(compgen -W "rapm pcm lcm dmd2 kd" -- "$word")); return ;;
        --metrics) COMPREPLY=($(compgen -W "attributes pictures fd-demo kd-demo fid kid clip fidelity latents position cmmd fd-dinov2 precision recall density coverage" -- "$word")); return ;;
        --output) COMPREPLY=($(compgen -f -- "$word")); return ;;
        --part) COMPREPLY=($(compgen -W "both held-out seen" -- "$word")); return ;;
        --precision) COMPREPLY=($(compgen -W "auto fp32 bf16 fp16" -- "$word")); return ;;
        --prompts) COMPREPLY=($(compgen -f -- "$word")); return ;;
        --protocol) COMPREPLY=($(compgen -W "coco30k dmd2-coco30k dmd2-coco10k" -- "$word")); return ;;
        --reference) COMPREPLY=($(compgen -f -- "$word")); return ;;
        --report-to) COMPREPLY=($(compgen -W "tensorboard wandb trackio" -- "$word")); return ;;
        --rng) COMPREPLY=($(compgen -W "cpu device" -- "$word")); return ;;
        --save-reference) COMPREPLY=($(compgen -f -- "$word")); return ;;
        --start-from) COMPREPLY=($(compgen -W "student teacher mixed" -- "$word")); return ;;
        --study) COMPREPLY=($(compgen -f -- "$word")); return ;;
        --vram) COMPREPLY=($(compgen -W "auto 24 16 12 8" -- "$word")); return ;;
    esac
    case "$command" in
        distill) COMPREPLY=($(compgen -W "--base --method --steps --fine-steps --delta --guidance --relative-weight --absolute-weight --adversarial-weight --slot-weights --start-from --discriminators --fake-updates --lcm-times --discriminator --discriminator-times --rank --alpha --lora-init --iterations --trajectories --batch-size --learning-rate --final-rate --ema-decay --discriminator-learning-rate --warmup --weight-decay --max-grad-norm --checkpointing --vram --compile --channels-last --no-graphs --prompts --seed --samples --output --resume --new --save-every --report-to --preview-every --strict --deterministic --dry-run --device --precision --offline --config --json --quiet -q --help" -- "$word")) ;;
        generate) COMPREPLY=($(compgen -W "--steps --seed --num-images --prompts --base --lora --from --compare --grid --batch-size --output --preview --device --precision --rng --offline --config --json --quiet -q --help" -- "$word")) ;;
        eval) COMPREPLY=($(compgen -W "--base --lora --against --samples --metrics --seed --part --prompts --beside --batch-size --protocol --reference --save-reference --inception --clip-model --study --benchmark --profile --output --device --precision --offline --config --json --quiet -q --help" -- "$word")) ;;
        export) COMPREPLY=($(compgen -W "--base --format --fuse --single-file --dtype --output --push-to-hub --offline --json --quiet -q --help" -- "$word")) ;;
        inspect) COMPREPLY=($(compgen -W "--values --preview --prune --all --yes -y --json --help" -- "$word")) ;;
    esac
    case "$command:$word" in
        export:[!-]*|export:|inspect:[!-]*|inspect:)
            COMPREPLY=($(compgen -W "$(_rapm_runs)" -- "$word") $(compgen -f -- "$word")) ;;
    esac
}
_rapm_runs() {
    command ls "${RAPM_HOME:-${XDG_DATA_HOME:-$HOME/.local/share}/rapm}${RAPM_HOME:+/data}/runs" 2>/dev/null
}
complete -o filenames -F _rapm rapm
