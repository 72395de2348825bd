(** No theorem is empty: its hypotheses can all be met, and where it is called tight no smaller value would do.

    Each theorem is written once more with its right-hand side left open, [..._with value]. What it says is checked to be that
    very theorem for its own [value]; and any other [value] for which it held would have to be as large as stated here. Had the
    hypotheses contradicted each other, it would hold for every [value], however small. *)

From FrankWolfe Require Import setting assumptions lemmas huber line triangle.
From FrankWolfe Require fixed_step anytime circumradius short_step drift chain convex_rate.

(** * Theorem A *)

Definition fixed_step_with (value : R -> R -> R -> R) : Prop :=
  forall (E : InnerProductSpace) (P : Problem E) (run : Run E) (D M : R),
  Setting P run -> Diameter P D -> Initial_gap P run M ->
  Static P -> FrankWolfeStep P run true -> ConstantStep P run false (best_fixed M (beta P * D ^ 2) (INR (T run))) ->
  mean (gap run) (T run) <= value M (beta P * D ^ 2) (INR (T run)) + mean (eps run) (T run).

Lemma fixed_step_is_that : fixed_step.statement = fixed_step_with fixed_step.value.
Proof. reflexivity. Qed.

(** For one iteration and any constants. *)
Definition fixed_step_is_tight : Prop :=
  forall value, fixed_step_with value -> forall M b D, 0 < M -> 0 <= b -> 0 < D ->
  fixed_step.value M (b * D ^ 2) 1 <= value M (b * D ^ 2) 1.

(** For any number of iterations, without curvature. *)
Definition fixed_step_is_tight_for_linear_losses : Prop :=
  forall value, fixed_step_with value -> forall M n, 0 < M -> (1 <= n)%nat ->
  fixed_step.value M 0 (INR n) <= value M 0 (INR n).

Definition fixed_step_telescoped_with (value : R -> R -> R -> R -> R) : Prop :=
  forall (E : InnerProductSpace) (P : Problem E) (run : Run E) (D e : R),
  Setting P run -> Diameter P D ->
  Static P -> FrankWolfeStep P run true -> ConstantStep P run false e ->
  mean (gap run) (T run) <= value (decrease P run) (beta P * D ^ 2) e (INR (T run)) + mean (eps run) (T run).

Lemma fixed_step_telescoped_is_that :
  fixed_step.telescoped = fixed_step_telescoped_with (fun decrease C e T => decrease / (e * T) + C * e / 2).
Proof. reflexivity. Qed.

(** With curvature and for any number of iterations: whole steps that bounce from end to end and never fall. *)
Definition fixed_step_telescoped_is_tight : Prop :=
  forall value, fixed_step_telescoped_with value -> forall b D n, 0 <= b -> 0 < D -> (1 <= n)%nat ->
  0 / (1 * INR n) + b * D ^ 2 * 1 / 2 <= value 0 (b * D ^ 2) 1 (INR n).

(** * Theorem B *)

Definition anytime_with (value : R -> R -> R -> R) : Prop :=
  forall (E : InnerProductSpace) (P : Problem E) (run : Run E) (D Mo : R),
  Setting P run -> Diameter P D -> Oscillation P run Mo ->
  Static P -> FrankWolfeStep P run true -> AnytimeStep run Mo (beta P * D ^ 2) ->
  mean (gap run) (T run) <= value Mo (beta P * D ^ 2) (INR (T run)) + mean (eps run) (T run).

Lemma anytime_is_that : anytime.statement = anytime_with anytime.value.
Proof. reflexivity. Qed.

(** For one iteration, a whole step. *)
Definition anytime_is_tight : Prop :=
  forall value, anytime_with value -> forall Mo b D, 0 < Mo -> 0 <= b -> 0 < D -> b * D ^ 2 <= Mo ->
  anytime.value Mo (b * D ^ 2) 1 <= value Mo (b * D ^ 2) 1.

Definition anytime_is_tight_for_linear_losses : Prop :=
  forall value, anytime_with value -> forall Mo n, 0 < Mo -> (1 <= n)%nat ->
  anytime.value Mo 0 (INR n) <= value Mo 0 (INR n).

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

(** * Theorem D *)

Definition short_step_with (value : R -> R -> R -> R) : Prop :=
  forall (E : InnerProductSpace) (P : Problem E) (run : Run E) (D M : R),
  Setting P run -> Diameter P D -> Initial_gap P run M ->
  Static P -> FrankWolfeStep P run true -> ShortStepOrBetter P run ->
  mean (gap run) (T run) <= value M (beta P * D ^ 2) (INR (T run)) + mean (eps run) (T run).

Lemma short_step_is_that : short_step.statement = short_step_with short_step.value.
Proof. reflexivity. Qed.

Definition short_step_is_tight : Prop :=
  forall value, short_step_with value -> forall M b D, 0 < M -> 0 <= b -> 0 < D ->
  short_step.value M (b * D ^ 2) 1 <= value M (b * D ^ 2) 1.

Definition short_step_is_tight_for_linear_losses : Prop :=
  forall value, short_step_with value -> forall M n, 0 < M -> (1 <= n)%nat ->
  short_step.value M 0 (INR n) <= value M 0 (INR n).

(** * Theorem E *)

Definition drift_with (value : R -> R -> R -> R -> R -> R) : Prop :=
  forall (E : InnerProductSpace) (P : Problem E) (run : Run E) (D M up down : R),
  Setting P run -> Diameter P D -> Initial_gap P run M -> drift.Drift P run up down ->
  FrankWolfeStep P run true -> FixedOrShortStep P run (best_fixed (M + up + down) (beta P * D ^ 2) (INR (T run))) ->
  mean (gap run) (T run) <= value M up down (beta P * D ^ 2) (INR (T run)) + mean (eps run) (T run).

Lemma drift_is_that : drift.statement = drift_with drift.value.
Proof. reflexivity. Qed.

(** For two iterations and any drift: both its halves are paid in full. *)
Definition drift_is_tight : Prop :=
  forall value, drift_with value -> forall M up down, 0 < M -> 0 <= up -> 0 <= down ->
  drift.value M up down 0 2 <= value M up down 0 2.

(** * Theorem F *)

Definition chain_with (value : R -> R -> R -> R -> R) : Prop :=
  forall (E : InnerProductSpace) (P : Problem E) (run : Run E) (admissible : E -> Prop) (cut : nat -> E) (M : R),
  (1 <= T run)%nat -> Upper_smooth P -> 0 < beta P -> Initial_gap P run M -> chain.Descent P run admissible cut ->
  Static P -> HoldsEverywhere P -> ChainStep run admissible ->
  mean (chain.restricted cut) (T run) <= value M (beta P) (INR (T run)) (mean (chain.shortfall P run cut) (T run)).

Lemma chain_is_that : chain.statement = chain_with chain.value.
Proof. reflexivity. Qed.

(** For any number of links, none of which falls short. *)
Definition chain_is_tight : Prop :=
  forall value, chain_with value -> forall M b n, 0 < M -> 0 < b -> (1 <= n)%nat ->
  chain.value M b (INR n) 0 <= value M b (INR n) 0.

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

(** What is left to say of a run whose oracle is exact. *)
Lemma without_shortfall {E : InnerProductSpace} (run : Run E) b :
  (forall t, eps run t = 0) -> mean (gap run) (T run) <= b + mean (eps run) (T run) ->
  mean (gap run) (T run) <= b.
Proof.
  intros exact. replace (mean (eps run) (T run)) with 0; [lra |].
  unfold mean. rewrite (sum_ext _ (fun _ => 0)) by (intros; apply exact). rewrite sum_constant. unfold Rdiv. ring.
Qed.

(** ** Theorem A *)

Theorem FixedStepIsTight : fixed_step_is_tight.
Proof.
  intros value claim M b D HM Hb HD. unfold fixed_step.value. rewrite <- (worst_mean_gap M b D HM Hb HD).
  set (e := best_fixed M (b * D ^ 2) 1). apply without_shortfall; [reflexivity |].
  apply (claim line (worst_case M b D e) (worst_run M b D e) D M).
  - now apply worst_setting.
  - apply interval_diameter.
  - now apply worst_initial_gap.
  - apply parabola_is_static.
  - now apply worst_steps_or_lower.
  - now apply worst_constant_step.
Qed.

(** [phi_inverse y 0 = y] *)
Lemma phi_inverse_without_curvature y : 0 < y -> phi_inverse y 0 = y.
Proof. intros positive. unfold phi_inverse. destruct (Rle_dec y (0 / 2)); lra. Qed.

Lemma no_curvature slope D : beta (parabola slope 0 D) * D ^ 2 = 0.
Proof. simpl. ring. Qed.

Theorem FixedStepIsTightForLinearLosses : fixed_step_is_tight_for_linear_losses.
Proof.
  intros value claim M n HM some. pose proof (horizon_positive n some) as positive.
  unfold fixed_step.value. rewrite phi_inverse_without_curvature by now apply Rdiv_lt_0_compat.
  rewrite <- (linear_mean_gap M 1 n Rlt_0_1 some). apply without_shortfall; [reflexivity |].
  specialize (claim line (parabola (M / 1) 0 1) (walk_run (M / 1) 0 1 (fun _ => 1) n) 1 M).
  rewrite no_curvature in claim. apply claim.
  - apply linear_setting; lra || assumption.
  - apply interval_diameter.
  - apply linear_initial_gap; lra || assumption.
  - apply parabola_is_static.
  - apply linear_steps_or_lower; lra || assumption.
  - unfold best_fixed. destruct (Rle_dec (0 * INR _) (2 * M)); [| lra]. repeat split. lra.
Qed.

Theorem FixedStepTelescopedIsTight : fixed_step_telescoped_is_tight.
Proof.
  intros value claim b D n Hb HD some. pose proof (horizon_positive n some). set (r := D / 2).
  assert (0 < r) by (unfold r; lra). replace D with (2 * r) by (unfold r; lra).
  replace (0 / (1 * INR n) + b * (2 * r) ^ 2 * 1 / 2) with (2 * b * r ^ 2) by (field; lra).
  rewrite <- (bounce_mean_gap b r n some). apply without_shortfall; [reflexivity |].
  rewrite <- (bounce_never_falls b r n) at 1. apply (claim line (valley b r) (bounce_run b r n) (2 * r) 1).
  - now apply bounce_setting.
  - apply valley_diameter.
  - now intros t X.
  - apply exact_step_or_lower; [now apply bounce_setting | now apply bounce_steps].
  - repeat split. lra.
Qed.

(** ** Theorem B *)

Theorem AnytimeIsTight : anytime_is_tight.
Proof.
  intros value claim Mo b D HMo Hb HD large. pose proof (worst_curvature b D Hb).
  unfold anytime.value. destruct (Rle_dec (b * D ^ 2 * 1) Mo); [| lra].
  assert (whole : best_fixed Mo (b * D ^ 2) 1 = 1) by (unfold best_fixed; destruct (Rle_dec (b * D ^ 2 * 1) (2 * Mo)); lra).
  replace (Mo / 1 + b * D ^ 2 / 2) with (phi_inverse (Mo / 1) (b * D ^ 2))
    by (rewrite <- best_fixed_reaches_phi_inverse, whole by lra; field).
  rewrite <- (worst_mean_gap Mo b D HMo Hb HD).
  set (e := best_fixed Mo (b * D ^ 2) 1) in *. apply without_shortfall; [reflexivity |].
  apply (claim line (worst_case Mo b D e) (worst_run Mo b D e) D Mo).
  - now apply worst_setting.
  - apply interval_diameter.
  - now apply worst_oscillation.
  - apply parabola_is_static.
  - now apply worst_steps_or_lower.
  - intros t (first & last). simpl in last. replace t with 1%nat by lia. simpl eta. unfold anytime, worst_case.
    simpl. destruct (Rle_dec _ Mo); lra.
Qed.

Theorem AnytimeIsTightForLinearLosses : anytime_is_tight_for_linear_losses.
Proof.
  intros value claim Mo n HMo some. pose proof (horizon_positive n some) as positive.
  unfold anytime.value. destruct (Rle_dec (0 * INR n) Mo); [| lra].
  replace (Mo / INR n + 0 / 2) with (Mo / INR n) by lra.
  rewrite <- (linear_mean_gap Mo 1 n Rlt_0_1 some). apply without_shortfall; [reflexivity |].
  specialize (claim line (parabola (Mo / 1) 0 1) (walk_run (Mo / 1) 0 1 (fun _ => 1) n) 1 Mo).
  rewrite no_curvature in claim. apply claim.
  - apply linear_setting; lra || assumption.
  - apply interval_diameter.
  - apply linear_oscillation; lra || assumption.
  - apply parabola_is_static.
  - apply linear_steps_or_lower; lra || assumption.
  - intros t _. unfold anytime. destruct (Rle_dec (0 * INR t) Mo); [reflexivity | lra].
Qed.

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

(** ** Theorem D *)

Theorem ShortStepIsTight : short_step_is_tight.
Proof.
  intros value claim M b D HM Hb HD. unfold short_step.value. rewrite <- (worst_mean_gap M b D HM Hb HD).
  set (e := best_fixed M (b * D ^ 2) 1). apply without_shortfall; [reflexivity |].
  apply (claim line (worst_case M b D e) (worst_run M b D e) D M).
  - now apply worst_setting.
  - apply interval_diameter.
  - now apply worst_initial_gap.
  - apply parabola_is_static.
  - now apply worst_steps_or_lower.
  - now apply worst_short_step.
Qed.

Theorem ShortStepIsTightForLinearLosses : short_step_is_tight_for_linear_losses.
Proof.
  intros value claim M n HM some. pose proof (horizon_positive n some) as positive.
  unfold short_step.value. rewrite phi_inverse_without_curvature by now apply Rdiv_lt_0_compat.
  rewrite <- (linear_mean_gap M 1 n Rlt_0_1 some). apply without_shortfall; [reflexivity |].
  specialize (claim line (parabola (M / 1) 0 1) (walk_run (M / 1) 0 1 (fun _ => 1) n) 1 M).
  rewrite no_curvature in claim. apply claim.
  - apply linear_setting; lra || assumption.
  - apply interval_diameter.
  - apply linear_initial_gap; lra || assumption.
  - apply parabola_is_static.
  - apply linear_steps_or_lower; lra || assumption.
  - apply linear_short_step; lra || assumption.
Qed.

(** ** Theorem E *)

Theorem DriftIsTight : drift_is_tight.
Proof.
  intros value claim M up down HM Hup Hdown. set (P := moving M up down). set (run := moving_run M up down).
  unfold drift.value. rewrite phi_inverse_without_curvature by lra. rewrite <- moving_mean_gap. fold run.
  apply without_shortfall; [reflexivity |]. replace 0 with (beta P * 2 ^ 2) by (simpl; ring).
  apply (claim plane P run 2 M up down).
  - now apply moving_setting.
  - apply triangle_diameter.
  - now apply moving_initial_gap.
  - exists (fun _ => up), (fun _ => down). split; [| simpl; lra].
    intros t X _ inside. pose proof (moving_drift M up down Hup Hdown t X inside). unfold P. lra.
  - now apply moving_steps.
  - left. unfold best_fixed. destruct (Rle_dec _ _) as [| above]; [| simpl in above; lra]. repeat split. lra.
Qed.

(** ** Theorem F *)

(** In one dimension nothing is cut off the gradient, and every number is a link. *)
Section One_dimension.
  Variables (b x : R) (n : nat).
  Hypotheses (b_positive : 0 < b) (some : (1 <= n)%nat).

  Local Notation P := (bowl b).
  Local Notation run := (one_link_run x n).
  Local Notation cut := (gradient P run).

  Lemma line_descent : chain.Descent P run (fun _ => True) cut.
  Proof. intros t _. now split. Qed.

  Lemma line_links : ChainStep run (fun _ => True).
  Proof. intros t _. exists (W run (S t) - W run t)%V. split; [exact I |]. simpl. ring. Qed.

  Lemma line_chain_short_of_nothing : mean (chain.shortfall P run cut) (T run) = 0.
  Proof.
    unfold mean. rewrite (sum_ext _ (fun _ => 0)).
    - rewrite sum_constant. unfold Rdiv. ring.
    - intros t range. apply (chain.nothing_short P run (fun _ => True)); try assumption.
      + apply bowl_is_smooth. lra.
      + exact line_descent.
      + now intros X.
      + intros s inside. apply every_link_ends_lowest; [lra | apply inside].
  Qed.

  Lemma line_chain_mean : mean (chain.restricted cut) (T run) = (b * x) ^ 2 / INR n.
  Proof.
    rewrite <- (one_link_mean_square b x n some). unfold mean. f_equal. apply sum_ext. intros t _.
    unfold chain.restricted, gradient. simpl. ring.
  Qed.
End One_dimension.

Theorem ChainIsTight : chain_is_tight.
Proof.
  intros value claim M b n HM Hb some. pose proof (horizon_positive n some). set (x := sqrt (2 * M / b)).
  assert (square : b * x ^ 2 / 2 = M).
  { unfold x. rewrite pow2_sqrt; [field; lra |]. left. apply Rdiv_lt_0_compat; lra. }
  replace (chain.value M b (INR n) 0) with ((b * x) ^ 2 / INR n) by (unfold chain.value; rewrite <- square; field; lra).
  rewrite <- (line_chain_mean b x n some), <- (line_chain_short_of_nothing b x n Hb).
  apply (claim line (bowl b) (one_link_run x n) (fun _ => True)); try assumption.
  - apply bowl_is_smooth. lra.
  - rewrite <- square. apply one_link_initial_gap; lra || assumption.
  - apply line_descent.
  - now intros t X.
  - now intros X.
  - apply line_links.
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
