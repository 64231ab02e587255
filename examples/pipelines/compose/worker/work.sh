while read -r job; do echo "done: $job"; done
