(** Theorem 4.1 as the paper prints it: false for few iterations, whatever the step size, and true
    from [2 M/(beta D^2)] iterations on. *)

From FrankWolfe Require Import setting assumptions lemmas huber line.
From FrankWolfe Require fixed_step.

(** [2 sqrt(M beta) D/sqrt T] *)
Definition value (M C T : R) : R := 2 * sqrt (M * C / T).

(** As printed, with the step size that is best for it. *)
Definition claim : Prop :=
  forall (E : InnerProductSpace) (P : Problem E) (run : Run E) (D M : R),
  Setting P run -> Diameter P D -> Initial_gap P run M ->
  Static P -> FrankWolfeStep P run true -> ConstantStep P run false (best_fixed M (beta P * D ^ 2) (INR (T run))) ->
  mean (gap run) (T run) <= value M (beta P * D ^ 2) (INR (T run)) + mean (eps run) (T run).

Definition statement : Prop := ~ claim.

(** The paper leaves the step size open: the same with any rule [step M C T]. *)
Definition claim_for (step : R -> R -> R -> R) : Prop :=
  forall (E : InnerProductSpace) (P : Problem E) (run : Run E) (D M : R),
  Setting P run -> Diameter P D -> Initial_gap P run M ->
  Static P -> FrankWolfeStep P run true -> ConstantStep P run false (step M (beta P * D ^ 2) (INR (T run))) ->
  mean (gap run) (T run) <= value M (beta P * D ^ 2) (INR (T run)) + mean (eps run) (T run).

(** No rule saves it. *)
Definition no_step_helps : Prop := forall step, 0 < step 4 1 1 <= 1 -> ~ claim_for step.

(** For runs of [n] iterations alone. *)
Definition claim_at (n : nat) : Prop :=
  forall (E : InnerProductSpace) (P : Problem E) (run : Run E) (D M : R), T run = n ->
  Setting P run -> Diameter P D -> Initial_gap P run M ->
  Static P -> FrankWolfeStep P run true -> ConstantStep P run false (best_fixed M (beta P * D ^ 2) (INR n)) ->
  mean (gap run) n <= value M (beta P * D ^ 2) (INR n) + mean (eps run) n.

(** No number of iterations saves it either. *)
Definition fails_at_every_horizon : Prop := forall n, (1 <= n)%nat -> ~ claim_at n.

(** Where the printed value lies below the worst case of a short run, the threshold being 2.914. *)
Definition threshold : Prop :=
  forall M C T : R, 0 < M -> 0 < C -> 0 < T -> C * T <= 2 * M ->
  (value M C T < M / T + C / 2 <-> (1 + 1 / sqrt 2) ^ 2 < M / (C * T)).

(** It needs [C T <= 2 M]: in longer runs [M/T + C/2] is no longer the worst case. *)
Definition threshold_needs_short_runs : Prop :=
  ~ forall M C T : R, 0 < M -> 0 < C -> 0 < T -> (value M C T < M / T + C / 2 <-> (1 + 1 / sqrt 2) ^ 2 < M / (C * T)).

(** Beyond the threshold, the worst case of every curvature and diameter refutes the printed bound in one iteration. *)
Definition fails_beyond_threshold : Prop :=
  forall M beta D : R, 0 < M -> 0 < beta -> 0 < D -> (1 + 1 / sqrt 2) ^ 2 < M / (beta * D ^ 2) ->
  value M (beta * D ^ 2) 1 < mean (gap (worst_run M beta D (best_fixed M (beta * D ^ 2) 1))) 1.

(** Up to the threshold the printed bound holds. *)
Definition holds_up_to_threshold : Prop :=
  forall (E : InnerProductSpace) (P : Problem E) (run : Run E) (D M : R),
  Setting P run -> Diameter P D -> Initial_gap P run M ->
  Static P -> FrankWolfeStep P run true -> ConstantStep P run false (best_fixed M (beta P * D ^ 2) (INR (T run))) ->
  M <= (1 + 1 / sqrt 2) ^ 2 * (beta P * D ^ 2 * INR (T run)) ->
  mean (gap run) (T run) <= value M (beta P * D ^ 2) (INR (T run)) + mean (eps run) (T run).

(** And so it does for [T >= 2 M/(beta D^2)]. *)
Definition long_runs : Prop :=
  forall (E : InnerProductSpace) (P : Problem E) (run : Run E) (D M : R),
  Setting P run -> Diameter P D -> Initial_gap P run M ->
  Static P -> FrankWolfeStep P run true -> ConstantStep P run false (best_fixed M (beta P * D ^ 2) (INR (T run))) ->
  2 * M <= beta P * D ^ 2 * INR (T run) ->
  mean (gap run) (T run) <= value M (beta P * D ^ 2) (INR (T run)) + mean (eps run) (T run).

(** * Proof *)

(** ** The counterexample *)

(** [-4.5 x + x^2/2] on the unit interval, from 0, with one step of size [e]. *)
Definition counterexample : Problem line := parabola (9 / 2) 1 1.

Definition one_step_of (e : R) : Run line := walk_run (9 / 2) 1 1 (fun _ => e) 1.

(** The gap is that of the start, which the step does not move. *)
Lemma its_gap e : mean (gap (one_step_of e)) 1 = 9 / 2.
Proof. rewrite mean_of_one. simpl. lra. Qed.

Lemma its_printed_bound : value 4 1 1 = 4.
Proof. unfold value. replace (4 * 1 / 1) with (2 ^ 2) by field. rewrite sqrt_pow2; lra. Qed.

Lemma its_setting e : 0 <= e <= 1 -> Setting counterexample (one_step_of e).
Proof.
  intros range. apply walk_setting; try lra; [lia |]. intros t (first & last). simpl in last.
  replace t with 1%nat by lia. simpl. lra.
Qed.

(** [4.5 x - x^2/2 <= 4] there *)
Lemma its_initial_gap e : Initial_gap counterexample (one_step_of e) 4.
Proof. apply parabola_initial_gap. intros x range. nra. Qed.

Lemma its_curvature : beta counterexample * 1 ^ 2 = 1.
Proof. simpl. ring. Qed.

Theorem NoStepHelps : no_step_helps.
Proof.
  intros step range printed. set (e := step 4 1 1) in range.
  specialize (printed line counterexample (one_step_of e) 1 4). rewrite its_curvature in printed.
  change (INR (T (one_step_of e))) with 1 in printed. change (T (one_step_of e)) with 1%nat in printed.
  assert (setting : Setting counterexample (one_step_of e)) by (apply its_setting; lra).
  rewrite its_gap, its_printed_bound, mean_of_one in printed. simpl (eps _ _) in printed.
  (* it would say 4.5 <= 4 *)
  enough (9 / 2 <= 4 + 0) by lra. apply printed; try assumption.
  - apply interval_diameter.
  - apply its_initial_gap.
  - apply parabola_is_static.
  - apply exact_step_or_lower; [assumption |]. apply walk_steps; [lra | intros _ _; lra].
  - repeat split. apply range.
Qed.

Theorem PrintedBound : statement.
Proof. apply (NoStepHelps best_fixed). apply best_fixed_in_range; lra. Qed.

(** ** At every horizon *)

(** [M = 4 n] on the unit interval, with whole steps: the first gap is [M + 1/2], all others are 0. *)
Section Horizon.
  Variables (n : nat) (some : (1 <= n)%nat).

  Local Notation M := (4 * INR n).
  Local Notation P := (parabola (M + 1 / 2) 1 1).
  Local Notation run := (walk_run (M + 1 / 2) 1 1 (fun _ => 1) n).

  Lemma horizon_step : best_fixed M (beta P * 1 ^ 2) (INR n) = 1.
  Proof. pose proof (horizon_positive n some). unfold best_fixed. simpl beta. destruct (Rle_dec _ _); lra. Qed.

  Lemma horizon_total_gap m : sum (gap run) (S m) = M + 1 / 2.
  Proof.
    induction m as [| m IH]; [simpl; field |].
    change (sum (gap run) (S m) + (M + 1 / 2 - 1 * walk 1 (fun _ => 1) (S (S m))) * (1 - walk 1 (fun _ => 1) (S (S m)))
            = M + 1 / 2).
    rewrite walk_arrives by reflexivity. rewrite IH. ring.
  Qed.

  Lemma horizon_mean_gap : mean (gap run) n = 4 + 1 / (2 * INR n).
  Proof.
    pose proof (horizon_positive n some). pose proof (horizon_total_gap (pred n)) as total.
    replace (S (pred n)) with n in total by lia. unfold mean. rewrite total. field. lra.
  Qed.

  Lemma horizon_printed_bound : value M (beta P * 1 ^ 2) (INR n) = 4.
  Proof.
    pose proof (horizon_positive n some). unfold value. simpl beta.
    replace (4 * INR n * (1 * 1 ^ 2) / INR n) with (2 ^ 2) by (field; lra). rewrite sqrt_pow2; lra.
  Qed.

  Lemma at_least_one : 1 <= INR n.
  Proof. change 1 with (INR 1). now apply le_INR. Qed.

  Lemma horizon_setting : Setting P run.
  Proof.
    pose proof at_least_one. apply walk_setting; try lra; [assumption |]. intros t _.
    destruct (walk_in_interval 1 (fun _ => 1) ltac:(lra) ltac:(intros; lra) t). lra.
  Qed.

  Lemma horizon_initial_gap : Initial_gap P run M.
  Proof.
    pose proof at_least_one. apply parabola_initial_gap. intros x range.
    (* M - (M + 1/2) x + x^2/2 = (1 - x) (M - x/2) *)
    assert (0 <= (1 - x) * (M - x / 2)) by (apply Rmult_le_pos; lra). lra.
  Qed.
End Horizon.

Theorem FailsAtEveryHorizon : fails_at_every_horizon.
Proof.
  intros n some printed. pose proof (horizon_positive n some).
  specialize (printed line (parabola (4 * INR n + 1 / 2) 1 1) (walk_run (4 * INR n + 1 / 2) 1 1 (fun _ => 1) n) 1 (4 * INR n)).
  rewrite horizon_mean_gap, horizon_printed_bound, horizon_step in printed by assumption.
  pose proof (horizon_setting n some).
  (* it would say 4 + 1/(2 n) <= 4 *)
  assert (0 < 1 / (2 * INR n)) by (apply Rdiv_lt_0_compat; lra).
  enough (4 + 1 / (2 * INR n) <= 4 + 0) by lra.
  replace 0 with (mean (fun _ => 0) n) by (unfold mean; rewrite sum_constant; field; lra). apply printed; try assumption.
  - reflexivity.
  - apply interval_diameter.
  - now apply horizon_initial_gap.
  - apply parabola_is_static.
  - apply exact_step_or_lower; [assumption |]. apply walk_steps; [lra | intros; lra].
  - repeat split. lra.
Qed.

(** ** The threshold *)

(** [1/sqrt 2] *)
Lemma half_root : 1 / 2 < 1 / sqrt 2 /\ (1 / sqrt 2) ^ 2 = 1 / 2.
Proof.
  pose proof (sqrt_lt_R0 2 ltac:(lra)). assert (square : sqrt 2 ^ 2 = 2) by (apply pow2_sqrt; lra). split.
  - apply Rmult_lt_reg_r with (sqrt 2); [assumption |]. replace (1 / sqrt 2 * sqrt 2) with 1 by (field; lra). nra.
  - replace ((1 / sqrt 2) ^ 2) with (1 / sqrt 2 ^ 2) by (field; lra). rewrite square. reflexivity.
Qed.

(** [2 x < x^2 + 1/2] as soon as [x > 1 + 1/sqrt 2], and otherwise for [x < 1 - 1/sqrt 2] only. *)
Lemma root_threshold x : 0 <= x -> 1 / 2 <= x ^ 2 -> (2 * x < x ^ 2 + 1 / 2 <-> (1 + 1 / sqrt 2) ^ 2 < x ^ 2).
Proof.
  destruct half_root as (large & square). set (h := 1 / sqrt 2) in *. intros x_nonneg x_large. split; intros above.
  - (* (x - 1 - h) (x - 1 + h) > 0, and the second factor is positive, as x >= h > 1/2 *)
    assert (h <= x) by nra. assert (1 + h < x) by nra. nra.
  - assert (1 + h < x) by nra. nra.
Qed.

Lemma value_at_root M C T x : 0 <= C -> 0 < T -> 0 <= x -> M = C * T * x ^ 2 -> value M C T = 2 * C * x.
Proof.
  intros HC HT Hx root. unfold value. rewrite root. replace (C * T * x ^ 2 * C / T) with ((C * x) ^ 2) by (field; lra).
  rewrite sqrt_pow2 by nra. ring.
Qed.

Theorem Threshold : threshold.
Proof.
  intros M C T HM HC HT short. assert (0 < C * T) by nra.
  set (x := sqrt (M / (C * T))). assert (0 <= x) by apply sqrt_pos.
  assert (square : x ^ 2 = M / (C * T)) by (apply pow2_sqrt; left; now apply Rdiv_lt_0_compat).
  assert (root : M = C * T * x ^ 2) by (rewrite square; field; lra).
  assert (1 / 2 <= x ^ 2) by nra.
  rewrite <- square, <- root_threshold, (value_at_root M C T x) by (assumption || lra).
  replace (M / T) with (C * x ^ 2) by (rewrite root at 1; field; lra).
  split; intros above; nra.
Qed.

(** [M = T = 1], [C = 100]: 20 lies below 51, and [M/(C T)] is 0.01. *)
Theorem ThresholdNeedsShortRuns : threshold_needs_short_runs.
Proof.
  intros everywhere. destruct half_root as (large & _).
  destruct (everywhere 1 100 1 ltac:(lra) ltac:(lra) ltac:(lra)) as (above & _).
  rewrite (value_at_root 1 100 1 (1 / 10)) in above by lra. specialize (above ltac:(lra)). nra.
Qed.

Theorem FailsBeyondThreshold : fails_beyond_threshold.
Proof.
  intros M beta D HM Hbeta HD above. set (C := beta * D ^ 2) in *. destruct half_root as (large & _).
  assert (0 < C) by (apply Rmult_lt_0_compat; [| apply pow_lt]; assumption).
  assert (2 * C < M).
  { apply (Rmult_lt_compat_r C) in above; [| assumption]. replace (M / C * C) with M in above by (field; lra). nra. }
  unfold C. rewrite (worst_mean_gap M beta D HM (Rlt_le _ _ Hbeta) HD : mean _ 1 = _). fold C.
  unfold phi_inverse. destruct (Rle_dec (M / 1) (C / 2)); [lra |]. apply Threshold; rewrite ?Rmult_1_r; lra.
Qed.

(** ** Where it holds *)

(** Theorem A's value lies below the printed one up to the threshold. Long runs need [sqrt 2 <= 2] and nothing else. *)
Lemma corrected_below_printed M C T : 0 <= M -> 0 <= C -> 0 < T -> M <= (1 + 1 / sqrt 2) ^ 2 * (C * T) ->
  phi_inverse (M / T) C <= value M C T.
Proof.
  intros HM HC HT below. unfold phi_inverse. destruct (Rle_dec (M / T) (C / 2)) as [long | short].
  - (* sqrt (2 C M/T) <= sqrt (4 M C/T) *)
    unfold value. assert (0 <= M * C / T) by (apply Rmult_le_pos; [nra | left; now apply Rinv_0_lt_compat]).
    replace 2 with (sqrt (2 ^ 2)) at 2 by (apply sqrt_pow2; lra). rewrite <- sqrt_mult by lra.
    apply sqrt_le_1_alt. unfold Rdiv in *. lra.
  - assert (C * T < 2 * M).
    { apply Rnot_le_lt in short. apply (Rmult_lt_compat_r (2 * T)) in short; [| lra].
      replace (M / T * (2 * T)) with (2 * M) in short by (field; lra). lra. }
    assert (0 < C * T) by (destruct (Req_dec C 0) as [-> |]; [lra | apply Rmult_lt_0_compat; lra]). assert (0 < C) by nra.
    apply Rnot_lt_le. intros above. apply Threshold in above; try lra.
    apply (Rmult_lt_compat_r (C * T)) in above; [| assumption].
    replace (M / (C * T) * (C * T)) with M in above by (field; lra). lra.
Qed.

Theorem HoldsUpToThreshold : holds_up_to_threshold.
Proof.
  intros E P run D M setting diameter initial static step constant below.
  eapply Rle_trans; [now apply (fixed_step.FixedStepBound E P run D M) |].
  apply Rplus_le_compat_r. apply corrected_below_printed; try assumption.
  - exact (initial_gap_nonneg P run M step initial).
  - exact (curvature_nonneg P run setting D).
  - exact (horizon_positive _ (some_iteration _ _ setting)).
Qed.

Theorem LongRuns : long_runs.
Proof.
  intros E P run D M setting diameter initial static step constant long.
  apply HoldsUpToThreshold; try assumption. destruct half_root as (large & _).
  pose proof (initial_gap_nonneg P run M step initial). nra.
Qed.
