(** That Theorem C and the convex rates are not empty: their hypotheses can all be met. The others are attained, see `tight.v`,
    which explains [..._with value]. *)

From FrankWolfe Require Import setting assumptions lemmas huber line tight.
From FrankWolfe Require circumradius convex_rate.

(** * Theorem C *)

Definition from_centre_with (value : R -> R -> R -> R -> R) : Prop :=
  forall (E : InnerProductSpace) (P : Problem E) (run : Run E) (c : E) (radius M : R),
  Setting P run -> Ball P c radius -> ‖W run 1 - c‖² = 0 -> Initial_gap P run M ->
  Static P -> FrankWolfeStep P run false ->
  ConstantStep P run true (circumradius.step_from_centre M (beta P) radius (INR (T run))) ->
  mean (gap run) (T run) <= value M (beta P) radius (INR (T run)) + mean (eps run) (T run).

Lemma from_centre_is_that : circumradius.statement_from_centre = from_centre_with circumradius.value_from_centre.
Proof. reflexivity. Qed.

(** The gap of a run that starts at the centre, for comparison: the theorem says [M + radius sqrt(2 M beta)]. *)
Definition from_centre_is_not_vacuous : Prop :=
  forall value, from_centre_with value -> forall M b radius, 0 < M -> 0 < b -> 0 < radius -> b * radius ^ 2 <= 2 * M ->
  M + b * radius ^ 2 / 2 <= value M b radius 1.

Definition from_centre_is_tight_for_linear_losses : Prop :=
  forall value, from_centre_with value -> forall M radius n, 0 < M -> 0 < radius -> (1 <= n)%nat ->
  circumradius.value_from_centre M 0 radius (INR n) <= value M 0 radius (INR n).

Definition from_anywhere_with (value : R -> R -> R -> R -> R) : Prop :=
  forall (E : InnerProductSpace) (P : Problem E) (run : Run E) (c : E) (radius M : R),
  Setting P run -> Ball P c radius -> Initial_gap P run M ->
  Static P -> FrankWolfeStep P run false ->
  ConstantStep P run true (circumradius.step_from_anywhere M (beta P) radius (INR (T run))) ->
  mean (gap run) (T run) <= value M (beta P) radius (INR (T run)) + mean (eps run) (T run).

Lemma from_anywhere_is_that : circumradius.statement_from_anywhere = from_anywhere_with circumradius.value_from_anywhere.
Proof. reflexivity. Qed.

Definition from_anywhere_is_not_vacuous : Prop :=
  forall value, from_anywhere_with value -> forall M b radius, 0 < M -> 0 < b -> 0 < radius -> b * radius ^ 2 <= 2 * M ->
  M + b * radius ^ 2 / 2 <= value M b radius 1.

(** * The convex rate *)

Definition convex_rate_with (value : R -> R -> R -> R) : Prop :=
  forall (E : InnerProductSpace) (P : Problem E) (run : Run E) (D delta : R) (Z : E),
  Setting P run -> Diameter P D -> convex_rate.Relative_shortfall run (beta P * D ^ 2) delta ->
  Static P -> Convex P -> KnownMinimum P Z -> FrankWolfeStep P run true -> OpenLoopStep run ->
  L P 1 (W run (S (T run))) - L P 1 Z <= value (beta P * D ^ 2) delta (INR (T run)).

Lemma convex_rate_is_that : convex_rate.statement_of_ConvexRate = convex_rate_with convex_rate.value_of_ConvexRate.
Proof. reflexivity. Qed.

(** From the minimum to the other end, for comparison: the theorem says [2 C/3]. *)
Definition convex_rate_is_not_vacuous : Prop :=
  forall value, convex_rate_with value -> forall b D, 0 <= b -> 0 < D -> b * D ^ 2 / 2 <= value (b * D ^ 2) 0 1.

Definition convex_gap_rate_with (value : R -> R -> R -> R) : Prop :=
  forall (E : InnerProductSpace) (P : Problem E) (run : Run E) (D delta : R),
  Setting P run -> Diameter P D -> convex_rate.Relative_shortfall run (beta P * D ^ 2) delta -> (3 <= T run)%nat ->
  Static P -> Convex P -> FrankWolfeStep P run true -> OpenLoopStep run ->
  exists t, (2 <= t <= T run)%nat /\ gap run t <= value (beta P * D ^ 2) delta (INR (T run)).

Lemma convex_gap_rate_is_that :
  convex_rate.statement_of_ConvexGapRate = convex_gap_rate_with convex_rate.value_of_ConvexGapRate.
Proof. reflexivity. Qed.

Definition convex_gap_rate_is_not_vacuous : Prop :=
  forall value, convex_gap_rate_with value -> forall b D n, 0 <= b -> 0 < D -> (3 <= n)%nat ->
  0 <= value (b * D ^ 2) 0 (INR n).

(** * Proof *)

(** ** Theorem C *)

Lemma interval_ball slope b radius : 0 < radius -> Ball (parabola slope b radius) 0 radius.
Proof. intros positive. split; [lra |]. intros X (low & high). simpl. nra. Qed.

(** The worst parabola, with a shorter step: the gap of the start does not notice. *)
Section Shorter_step.
  Variables (M b radius e : R).
  Hypotheses (M_positive : 0 < M) (bent : 0 < b) (radius_positive : 0 < radius) (large : b * radius ^ 2 <= 2 * M).
  Hypothesis e_range : 0 < e < 1.

  Local Notation slope := (worst_slope M b radius (best_fixed M (b * radius ^ 2) 1)).
  Local Notation P := (parabola slope b radius).
  Local Notation run := (walk_run slope b radius (fun _ => e) 1).

  Lemma shorter_setting : Setting P run.
  Proof.
    apply walk_setting; try lra; [lia |]. intros t (first & last). simpl in last. replace t with 1%nat by lia. simpl.
    rewrite Rmult_0_r. apply worst_slope_nonneg; lra.
  Qed.

  Lemma shorter_initial_gap : Initial_gap P run M.
  Proof. apply parabola_initial_gap. intros x range. apply worst_fall; assumption || lra. Qed.

  Lemma shorter_steps : FrankWolfeStep P run false.
  Proof. apply walk_steps; [lra | intros _ _; lra]. Qed.

  Lemma shorter_constant : ConstantStep P run true e.
  Proof. repeat split; [lra | left; lra]. Qed.

  Lemma shorter_gap : mean (gap run) (T run) = M + b * radius ^ 2 / 2.
  Proof.
    change (mean (gap run) 1 = M + b * radius ^ 2 / 2). rewrite mean_of_one.
    change ((slope - b * 0) * (radius - 0) = M + b * radius ^ 2 / 2). unfold worst_slope, best_fixed.
    destruct (Rle_dec (b * radius ^ 2 * 1) (2 * M)); [field; lra | lra].
  Qed.
End Shorter_step.

Lemma centred_in_range a b : 0 < a -> 0 < b -> 0 < circumradius.centred a b < 1.
Proof.
  intros Ha Hb. split; [| now apply circumradius.centred_below_one].
  unfold circumradius.centred. destruct (Rlt_dec 0 b); [| lra].
  pose proof (sqrt_lt_R0 a Ha). pose proof (sqrt_lt_R0 b Hb). apply Rdiv_lt_0_compat; lra.
Qed.

Theorem FromCentreIsNotVacuous : from_centre_is_not_vacuous.
Proof.
  intros value claim M b radius HM Hb HR large. assert (0 < b * radius ^ 2) by (apply Rmult_lt_0_compat; [| apply pow_lt]; lra).
  assert (range : 0 < circumradius.step_from_centre M b radius 1 < 1) by (apply centred_in_range; lra).
  set (e := circumradius.step_from_centre M b radius 1) in *.
  rewrite <- (shorter_gap M b radius e) by assumption. apply without_shortfall; [reflexivity |].
  set (slope := worst_slope M b radius _).
  apply (claim line (parabola slope b radius) (walk_run slope b radius (fun _ => e) 1) 0 radius M).
  - apply shorter_setting; lra.
  - now apply interval_ball.
  - simpl. ring.
  - apply shorter_initial_gap; lra.
  - apply parabola_is_static.
  - apply shorter_steps; lra.
  - exact (shorter_constant M b radius e range).
Qed.

Theorem FromAnywhereIsNotVacuous : from_anywhere_is_not_vacuous.
Proof.
  intros value claim M b radius HM Hb HR large. assert (0 < b * radius ^ 2) by (apply Rmult_lt_0_compat; [| apply pow_lt]; lra).
  assert (range : 0 < circumradius.step_from_anywhere M b radius 1 < 1) by (apply centred_in_range; lra).
  set (e := circumradius.step_from_anywhere M b radius 1) in *.
  rewrite <- (shorter_gap M b radius e) by assumption. apply without_shortfall; [reflexivity |].
  set (slope := worst_slope M b radius _).
  apply (claim line (parabola slope b radius) (walk_run slope b radius (fun _ => e) 1) 0 radius M).
  - apply shorter_setting; lra.
  - now apply interval_ball.
  - apply shorter_initial_gap; lra.
  - apply parabola_is_static.
  - apply shorter_steps; lra.
  - exact (shorter_constant M b radius e range).
Qed.

Theorem FromCentreIsTightForLinearLosses : from_centre_is_tight_for_linear_losses.
Proof.
  intros value claim M radius n HM HR some. pose proof (horizon_positive n some) as positive.
  unfold circumradius.value_from_centre. rewrite Rmult_0_r. replace (0 / INR n) with 0 by (field; lra).
  rewrite sqrt_0, Rmult_0_r, Rplus_0_l, <- (linear_mean_gap M radius n HR some). apply without_shortfall; [reflexivity |].
  apply (claim line (parabola (M / radius) 0 radius) (walk_run (M / radius) 0 radius (fun _ => 1) n) 0 radius M).
  - now apply linear_setting.
  - now apply interval_ball.
  - simpl. ring.
  - now apply linear_initial_gap.
  - apply parabola_is_static.
  - now apply linear_steps.
  - unfold circumradius.step_from_centre, circumradius.centred. simpl.
    destruct (Rlt_dec 0 _); [lra |]. repeat split; [lra | right; reflexivity].
Qed.

(** ** The convex rate *)

Definition open_loop (t : nat) : R := 2 / (INR t + 1).

Lemma open_loop_in_range t : (1 <= t)%nat -> 0 <= open_loop t <= 1.
Proof.
  intros first. apply le_INR in first. simpl in first. unfold open_loop. split.
  - apply Rmult_le_pos; [lra | left; apply Rinv_0_lt_compat; lra].
  - apply Rmult_le_reg_r with (INR t + 1); [lra |]. replace (2 / (INR t + 1) * (INR t + 1)) with 2 by (field; lra). lra.
Qed.

Lemma open_loop_starts_whole : open_loop 1 = 1.
Proof. unfold open_loop. simpl. field. Qed.

Lemma exact_oracle slope b D eta n C : convex_rate.Relative_shortfall (walk_run slope b D eta n) C 0.
Proof. split; [lra |]. intros t _. simpl. lra. Qed.

Theorem ConvexRateIsNotVacuous : convex_rate_is_not_vacuous.
Proof.
  intros value claim b D Hb HD. set (P := parabola 0 b D). set (run := walk_run 0 b D open_loop 1).
  assert (setting : Setting P run).
  { apply walk_setting; try lra; [lia |]. intros t (first & last). simpl in last. replace t with 1%nat by lia. simpl. lra. }
  replace (b * D ^ 2 / 2) with (L P 1 (W run (S (T run))) - L P 1 (0 : line))
    by (simpl; rewrite open_loop_starts_whole; field).
  apply (claim line P run D 0 (0 : line)).
  - assumption.
  - apply interval_diameter.
  - apply exact_oracle.
  - apply parabola_is_static.
  - now apply parabola_is_convex.
  - split; [split; lra |]. intros t X _. simpl. pose proof (Rmult_le_pos _ _ Hb (pow2_ge_0 X)). lra.
  - apply exact_step_or_lower; [assumption |]. apply walk_steps; [lra | exact open_loop_in_range].
  - now intros t _.
Qed.

Theorem ConvexGapRateIsNotVacuous : convex_gap_rate_is_not_vacuous.
Proof.
  intros value claim b D n Hb HD long. set (P := parabola (b * D) b D). set (run := walk_run (b * D) b D open_loop n).
  assert (setting : Setting P run).
  { apply walk_setting; try lra; [lia |]. intros t _. apply Rmult_le_compat_l; [assumption |].
    apply walk_in_interval; [lra | exact open_loop_in_range]. }
  destruct (claim line P run D 0) as (t & late & bound); try assumption.
  - apply interval_diameter.
  - apply exact_oracle.
  - apply parabola_is_static.
  - now apply parabola_is_convex.
  - apply exact_step_or_lower; [assumption |]. apply walk_steps; [lra | exact open_loop_in_range].
  - now intros t _.
  - (* it has arrived, and the gap is 0 *)
    destruct t as [| [| t]]; [lia | lia |]. replace (gap run (S (S t))) with 0 in bound; [exact bound |].
    change (0 = (b * D - b * walk D open_loop (S (S t))) * (D - walk D open_loop (S (S t)))).
    rewrite walk_arrives by exact open_loop_starts_whole. ring.
Qed.
